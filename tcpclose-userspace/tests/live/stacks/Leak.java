import java.io.InputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.ArrayList;
import java.util.List;

/** As leak.c, after each function has run often enough to be compiled. */
class Leak {
    interface Reader {
        int read(Socket socket) throws Exception;
    }

    static int leak_0(Socket socket) throws Exception {
        InputStream stream = socket.getInputStream();
        byte[] buffer = new byte[64];
        int all = 0;
        for (int got; (got = stream.read(buffer)) > 0;) all += got;
        return all;
    }

    static int leak_1(Socket socket) throws Exception {
        InputStream stream = socket.getInputStream();
        byte[] buffer = new byte[64];
        int all = 1;
        for (int got; (got = stream.read(buffer)) > 0;) all += got;
        return all;
    }

    static int leak_2(Socket socket) throws Exception {
        InputStream stream = socket.getInputStream();
        byte[] buffer = new byte[64];
        int all = 2;
        for (int got; (got = stream.read(buffer)) > 0;) all += got;
        return all;
    }

    static int leak_3(Socket socket) throws Exception {
        InputStream stream = socket.getInputStream();
        byte[] buffer = new byte[64];
        int all = 3;
        for (int got; (got = stream.read(buffer)) > 0;) all += got;
        return all;
    }

    static int leak_4(Socket socket) throws Exception {
        InputStream stream = socket.getInputStream();
        byte[] buffer = new byte[64];
        int all = 4;
        for (int got; (got = stream.read(buffer)) > 0;) all += got;
        return all;
    }

    static final Reader[] LEAKS = {Leak::leak_0, Leak::leak_1, Leak::leak_2, Leak::leak_3, Leak::leak_4};

    public static void main(String[] arguments) throws Exception {
        int count = Integer.parseInt(arguments[0]);
        ServerSocket listener = new ServerSocket(0, 64, InetAddress.getLoopbackAddress());
        for (int nth = 0; nth < 5_000; nth++) {
            Socket client = new Socket(listener.getInetAddress(), listener.getLocalPort());
            try (Socket socket = listener.accept()) {
                client.shutdownOutput();
                LEAKS[nth % 5].read(socket);
            }
            // No TIME-WAIT.
            client.setSoLinger(true, 0);
            client.close();
        }
        System.out.println(listener.getLocalPort());
        List<Socket> held = new ArrayList<>();
        for (int nth = 0; nth < count; nth++) {
            Socket socket = listener.accept();
            held.add(socket);
            LEAKS[nth % 5].read(socket);
        }
        while (true) Thread.sleep(1_000_000 + held.size());
    }
}
