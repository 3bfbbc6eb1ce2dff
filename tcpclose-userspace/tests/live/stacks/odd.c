/* As leak.c, but reads the end in the way that its first argument says. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

__attribute__((noinline)) static int leak_0(int fd)
{
    char buffer[64];
    volatile int all = 0;
    ssize_t got;
    while ((got = read(fd, buffer, sizeof buffer)) > 0)
        all += got;
    return all;
}

/* On a thread of its own. */
static void *in_thread(void *fd)
{
    return (void *)(intptr_t)(leak_0((int)(intptr_t)fd) + 1);
}

/* Below many calls of itself. */
__attribute__((noinline)) static int recurse(int depth, int fd)
{
    volatile int deep = depth == 0 ? leak_0(fd) : recurse(depth - 1, fd);
    return deep + 1;
}

/* The functions whose addresses lie in a forged stack: none of them reads. */
__attribute__((noinline)) int innocent(int n)
{
    return n + getppid();
}

static uint64_t *forged;

/* read() with another stack pointer and frame pointer, neither of which is a stack's. */
__attribute__((noinline)) static long read_with(int fd, void *buffer, uint64_t sp, uint64_t fp)
{
    long got;
    __asm__ volatile("mov %%rsp, %%r12\n\t"
                     "mov %%rbp, %%r13\n\t"
                     "mov %5, %%rsp\n\t"
                     "mov %6, %%rbp\n\t"
                     "syscall\n\t"
                     "mov %%r12, %%rsp\n\t"
                     "mov %%r13, %%rbp\n\t"
                     : "=a"(got)
                     : "0"(SYS_read), "D"(fd), "S"(buffer), "d"(64), "r"(sp), "r"(fp)
                     : "rcx", "r11", "r12", "r13", "memory");
    return got;
}

static void garbage(int fd, int nth)
{
    static char buffer[64];
    enum { WORDS = 1 << 12 };
    if (!forged) {
        forged = mmap(NULL, WORDS * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (int at = 0; at < WORDS; at++)
            forged[at] = at % 3 == 0 ? (uint64_t)rand() << 20 | rand()
                       : at % 3 == 1 ? (uint64_t)&forged[rand() % WORDS]
                                     : (uint64_t)innocent + rand() % 16;
        /* A frame that is its own caller. */
        forged[64] = (uint64_t)&forged[64];
        forged[65] = (uint64_t)innocent + 4;
    }
    uint64_t inside = (uint64_t)&forged[rand() % (WORDS / 2)];
    uint64_t end = (uint64_t)&forged[WORDS];
    uint64_t pointers[][2] = {
        {inside, (uint64_t)&forged[64]},
        {inside, inside + 8},
        {0, 0},
        {~0ULL - 15, ~0ULL - 15},
        {0x8000000000000000, 0xffff888000000000},
        {end - 64, end - 16},
        {inside + 3, inside + 1},
        {(uint64_t)innocent, (uint64_t)innocent},
    };
    uint64_t *pair = pointers[nth % 8];
    while (read_with(fd, buffer, pair[0], pair[1]) > 0)
        ;
}

/* Reads below code that no file has. */
static int from_made_code(int fd)
{
    /* push %rbp; mov %rsp, %rbp; call *%rsi; pop %rbp; ret */
    static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0xff, 0xd6, 0x5d, 0xc3};
    static void *made;
    if (!made) {
        made = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memcpy(made, code, sizeof code);
    }
    return ((int (*)(int, int (*)(int)))made)(fd, leak_0) + 1;
}

/* Reads by io_uring, without its library. */
struct ring {
    int fd;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail;
    struct io_uring_sqe *entries;
};

static struct ring ring_new(void)
{
    struct io_uring_params p = {0};
    struct ring ring = {.fd = syscall(SYS_io_uring_setup, 256, &p)};
    if (ring.fd < 0)
        exit(2);
    size_t size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    char *rings = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
    ring.sq_tail = (void *)(rings + p.sq_off.tail);
    ring.sq_mask = (void *)(rings + p.sq_off.ring_mask);
    ring.sq_array = (void *)(rings + p.sq_off.array);
    ring.cq_head = (void *)(rings + p.cq_off.head);
    ring.cq_tail = (void *)(rings + p.cq_off.tail);
    ring.entries = mmap(NULL, p.sq_entries * sizeof *ring.entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQES);
    return ring;
}

__attribute__((noinline)) static void leak_by_ring(struct ring *ring, int fd, int flags)
{
    static char buffer[256][64];
    unsigned tail = *ring->sq_tail, at = tail & *ring->sq_mask;
    struct io_uring_sqe *entry = &ring->entries[at];
    memset(entry, 0, sizeof *entry);
    entry->opcode = IORING_OP_RECV;
    entry->flags = flags;
    entry->fd = fd;
    entry->addr = (uintptr_t)buffer[at];
    entry->len = sizeof buffer[at];
    ring->sq_array[at] = at;
    __atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
    syscall(SYS_io_uring_enter, ring->fd, 1, 0, 0, NULL, 0);
}

/* Has nothing to do with any socket: the kernel completes reads while it sleeps. */
__attribute__((noinline)) static void innocent_sleep(void)
{
    volatile int n = 0;
    for (;;)
        n += usleep(20000);
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (argc < 3 || bind(listener, (void *)&address, size) || listen(listener, 256))
        return 1;
    getsockname(listener, (void *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    const char *way = argv[1];
    int is_ring = !strncmp(way, "ring", 4);
    struct ring ring = {0};
    if (is_ring)
        ring = ring_new();
    volatile int all = 0;
    for (int nth = 0; nth < atoi(argv[2]); nth++) {
        int fd = accept(listener, NULL, NULL);
        pthread_t thread;
        if (!strcmp(way, "thread")) {
            pthread_create(&thread, NULL, in_thread, (void *)(intptr_t)fd);
            pthread_join(thread, NULL);
        } else if (!strcmp(way, "deep"))
            all += recurse(200, fd);
        else if (!strcmp(way, "garbage"))
            garbage(fd, nth);
        else if (!strcmp(way, "made"))
            all += from_made_code(fd);
        else if (!strcmp(way, "ring"))
            leak_by_ring(&ring, fd, 0);
        else if (!strcmp(way, "ring-worker"))
            leak_by_ring(&ring, fd, IOSQE_ASYNC);
        else
            all += leak_0(fd);
    }
    innocent_sleep();
}
