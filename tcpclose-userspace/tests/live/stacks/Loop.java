import io.netty.bootstrap.ServerBootstrap;
import io.netty.buffer.Unpooled;
import io.netty.channel.Channel;
import io.netty.channel.ChannelHandlerContext;
import io.netty.channel.ChannelInboundHandlerAdapter;
import io.netty.channel.ChannelInitializer;
import io.netty.channel.ChannelOption;
import io.netty.channel.nio.NioEventLoopGroup;
import io.netty.channel.socket.SocketChannel;
import io.netty.channel.socket.nio.NioServerSocketChannel;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;

/** A server by Netty that keeps connections whose peers have closed them, and answers their ends. */
class Loop {
    static class Keeping extends ChannelInboundHandlerAdapter {
        @Override
        public void userEventTriggered(ChannelHandlerContext context, Object event) {
            leak_0(context);
        }

        static void leak_0(ChannelHandlerContext context) {
            context.writeAndFlush(Unpooled.wrappedBuffer(new byte[] {1}));
        }
    }

    public static void main(String[] arguments) throws Exception {
        NioEventLoopGroup loops = new NioEventLoopGroup(1);
        ServerBootstrap server = new ServerBootstrap().group(loops).channel(NioServerSocketChannel.class);
        server.childOption(ChannelOption.ALLOW_HALF_CLOSURE, true);
        server.childHandler(new ChannelInitializer<SocketChannel>() {
            @Override
            protected void initChannel(SocketChannel channel) {
                channel.pipeline().addLast(new Keeping());
            }
        });
        Channel channel = server.bind(InetAddress.getLoopbackAddress(), 0).sync().channel();
        int port = ((InetSocketAddress) channel.localAddress()).getPort();
        // Until it is compiled.
        for (int nth = 0; nth < 3_000; nth++) {
            try (Socket client = new Socket(InetAddress.getLoopbackAddress(), port)) {
                client.shutdownOutput();
                client.getInputStream().read();
                client.setSoLinger(true, 0);
            }
        }
        System.out.println(port);
    }
}
