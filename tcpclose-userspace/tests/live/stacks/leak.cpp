// As leak.c, in a class; or, called with PORT COUNT, opens COUNT connections to PORT once a line has come.
#include <arpa/inet.h>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <sys/socket.h>
#include <unistd.h>
#include <vector>

namespace shop {
class Pool {
  public:
#define LEAK(name)                                                                                                               \
    [[gnu::noinline]] std::string name(int fd)                                                                                   \
    {                                                                                                                            \
        std::string all;                                                                                                         \
        char buffer[64];                                                                                                         \
        for (ssize_t got; (got = read(fd, buffer, sizeof buffer)) > 0;)                                                          \
            all.append(buffer, got);                                                                                             \
        return all + #name;                                                                                                      \
    }                                                                                                                            \
    [[gnu::noinline]] int open_##name(const sockaddr_in &to)                                                                     \
    {                                                                                                                            \
        int fd = socket(AF_INET, SOCK_STREAM, 0);                                                                                \
        if (connect(fd, reinterpret_cast<const sockaddr *>(&to), sizeof to))                                                     \
            exit(1);                                                                                                             \
        opened.push_back(fd);                                                                                                    \
        return fd;                                                                                                               \
    }

    LEAK(leak_0)
    LEAK(leak_1)
    LEAK(leak_2)
    LEAK(leak_3)
    LEAK(leak_4)

    template <typename Take> [[gnu::noinline]] size_t serve(int listener, Take take)
    {
        int fd = accept(listener, nullptr, nullptr);
        if (fd < 0)
            exit(1);
        return take(*this, fd).size();
    }

    std::vector<int> opened;
};
} // namespace shop

int main(int argc, char **argv)
{
    using shop::Pool;
    Pool pool;
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (argc == 3) {
        address.sin_port = htons(atoi(argv[1]));
        puts("0");
        fflush(stdout);
        getchar();
        using Open = int (Pool::*)(const sockaddr_in &);
        Open opens[] = {&Pool::open_leak_0, &Pool::open_leak_1, &Pool::open_leak_2, &Pool::open_leak_3, &Pool::open_leak_4};
        for (int nth = 0; nth < atoi(argv[2]); nth++)
            (pool.*opens[nth % 5])(address);
    } else {
        socklen_t size = sizeof address;
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        if (argc < 2 || bind(listener, reinterpret_cast<sockaddr *>(&address), size) || listen(listener, 64))
            return 1;
        getsockname(listener, reinterpret_cast<sockaddr *>(&address), &size);
        printf("%d\n", ntohs(address.sin_port));
        fflush(stdout);
        using Leak = std::string (Pool::*)(int);
        Leak leaks[] = {&Pool::leak_0, &Pool::leak_1, &Pool::leak_2, &Pool::leak_3, &Pool::leak_4};
        volatile size_t all = 0;
        for (int nth = 0; nth < atoi(argv[1]); nth++)
            all = all + pool.serve(listener, [&](Pool &of, int fd) { return (of.*leaks[nth % 5])(fd); });
    }
    for (;;)
        pause();
}
