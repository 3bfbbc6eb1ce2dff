/* Accepts COUNT connections on a listener that it prints the port of, reads each to its end in one of five functions, and closes
 * none. The functions do not call read() last, so that they are on the stack. */
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define LEAK(name)                                                                                                               \
    __attribute__((noinline)) int name(int fd)                                                                                   \
    {                                                                                                                            \
        char buffer[64];                                                                                                         \
        volatile int all = 0;                                                                                                    \
        ssize_t got;                                                                                                             \
        while ((got = read(fd, buffer, sizeof buffer)) > 0)                                                                      \
            all += got;                                                                                                          \
        return all;                                                                                                              \
    }

LEAK(leak_0)
LEAK(leak_1)
LEAK(leak_2)
LEAK(leak_3)
LEAK(leak_4)

int (*const leaks[])(int) = {leak_0, leak_1, leak_2, leak_3, leak_4};

__attribute__((noinline)) int serve(int listener, int nth)
{
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        exit(1);
    return leaks[nth % 5](fd) + 1;
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (argc < 2 || bind(listener, (void *)&address, size) || listen(listener, 64))
        return 1;
    getsockname(listener, (void *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    volatile int all = 0;
    for (int nth = 0; nth < atoi(argv[1]); nth++)
        all += serve(listener, nth);
    for (;;)
        pause();
}
