import java.io.InputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.ArrayList;
import java.util.List;
import org.apache.commons.pool2.BasePooledObjectFactory;
import org.apache.commons.pool2.PooledObject;
import org.apache.commons.pool2.impl.DefaultPooledObject;
import org.apache.commons.pool2.impl.GenericObjectPool;
import org.apache.http.client.methods.CloseableHttpResponse;
import org.apache.http.client.methods.HttpGet;
import org.apache.http.impl.client.CloseableHttpClient;
import org.apache.http.impl.client.HttpClients;
import org.apache.http.util.EntityUtils;

/** Programs that leave connections open, or do not: Programs WAY PORT. They end when their standard input does. */
public class Programs {
    static final List<Object> kept = new ArrayList<>();
    static int port;

    public static void main(String[] arguments) throws Exception {
        port = Integer.parseInt(arguments[1]);
        Thread end = new Thread(() -> {
            try {
                System.in.readAllBytes();
            } catch (java.io.IOException ignored) {
            }
            Runtime.getRuntime().halt(0);
        });
        end.setDaemon(true);
        end.start();
        switch (arguments[0]) {
            case "leaking_server" -> server(Integer.MAX_VALUE);
            case "forgetful_server" -> server(3);
            case "leaking_client" -> {
                System.out.println("ready");
                while (true) {
                    kept.add(used());
                    Thread.sleep(400);
                }
            }
            case "apache_leak" -> {
                System.out.println("ready");
                while (true) {
                    CloseableHttpClient client = HttpClients.createDefault();
                    get(client);
                    kept.add(client);
                    Thread.sleep(400);
                }
            }
            case "apache_pool" -> {
                // Five connections at the same time, then none.
                CloseableHttpClient client = HttpClients.custom().setMaxConnPerRoute(5).build();
                List<CloseableHttpResponse> responses = new ArrayList<>();
                for (int i = 0; i < 5; i++) {
                    responses.add(client.execute(new HttpGet("http://127.0.0.1:" + port + "/")));
                }
                for (CloseableHttpResponse response : responses) {
                    EntityUtils.consume(response.getEntity());
                }
                kept.add(client);
                System.out.println("ready");
                Thread.sleep(Long.MAX_VALUE);
            }
            case "commons_pool" -> commonsPool();
            case "jdk_pool" -> {
                HttpClient client = HttpClient.newHttpClient();
                HttpRequest request = HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + port + "/")).build();
                client.send(request, HttpResponse.BodyHandlers.ofString());
                System.out.println("ready");
                while (true) {
                    Thread.sleep(4000);
                    client.send(request, HttpResponse.BodyHandlers.ofString());
                }
            }
            default -> throw new IllegalArgumentException(arguments[0]);
        }
    }

    /** Reads each to its end; the first `most` are not closed. */
    static void server(int most) throws Exception {
        ServerSocket listener = new ServerSocket(port, 512, InetAddress.getLoopbackAddress());
        System.out.println("ready");
        while (true) {
            Socket socket = listener.accept();
            socket.getInputStream().transferTo(java.io.OutputStream.nullOutputStream());
            if (kept.size() < most) {
                kept.add(socket);
            } else {
                socket.close();
            }
        }
    }

    /** A connection over which a request and its answer went. */
    static Socket used() throws Exception {
        Socket socket = new Socket(InetAddress.getLoopbackAddress(), port);
        use(socket);
        return socket;
    }

    static void use(Socket socket) throws Exception {
        socket.getOutputStream().write("GET / HTTP/1.1\r\nHost: test\r\n\r\n".getBytes());
        InputStream in = socket.getInputStream();
        String answer = "";
        while (!answer.endsWith("\r\n\r\nok")) {
            int next = in.read();
            if (next < 0) {
                throw new java.io.EOFException();
            }
            answer += (char) next;
        }
    }

    static void get(CloseableHttpClient client) throws Exception {
        try (CloseableHttpResponse response = client.execute(new HttpGet("http://127.0.0.1:" + port + "/"))) {
            EntityUtils.consume(response.getEntity());
        }
    }

    /** A pool of sockets without a health check: what fails in use is thrown away. */
    static void commonsPool() throws Exception {
        GenericObjectPool<Socket> pool = new GenericObjectPool<>(new BasePooledObjectFactory<>() {
            @Override
            public Socket create() throws Exception {
                return new Socket(InetAddress.getLoopbackAddress(), port);
            }

            @Override
            public PooledObject<Socket> wrap(Socket socket) {
                return new DefaultPooledObject<>(socket);
            }

            @Override
            public void destroyObject(PooledObject<Socket> pooled) throws Exception {
                pooled.getObject().close();
            }
        });
        pool.setLifo(false);
        List<Socket> first = new ArrayList<>();
        for (int i = 0; i < 5; i++) {
            Socket socket = pool.borrowObject();
            use(socket);
            first.add(socket);
        }
        first.forEach(pool::returnObject);
        System.out.println("ready");
        while (true) {
            Thread.sleep(4000);
            Socket socket = pool.borrowObject();
            try {
                use(socket);
                pool.returnObject(socket);
            } catch (java.io.IOException closed) {
                pool.invalidateObject(socket);
                pool.addObject();
            }
        }
    }
}
