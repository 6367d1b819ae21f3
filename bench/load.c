/* The load that no public tool makes: new connections with one request each, the round
 * trip of a small message, many idle connections; and the echo server behind them.
 *
 *   load echo PORT                              serve: send back what comes
 *   load conns HOST PORT SECONDS CONCURRENCY    HTTP GET, one a connection, to the end of the connection
 *   load pingpong HOST PORT SECONDS BYTES       one connection, one message under way
 *   load messages HOST PORT SECONDS CONNECTIONS  the same on many, 64 bytes
 *   load connects HOST PORT COUNT FD        for each byte read: COUNT times connect, accept it at the listener FD, close
 *   load hold HOST PORT COUNT CONCURRENCY       open COUNT, one byte there and back on each, hold until stdin ends
 *
 * One thread, one epoll.  Prints one line of JSON; times are microseconds of CLOCK_MONOTONIC,
 * percentiles are of all samples (no histogram).  Exit 1: it could not do its job.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS (1 << 17)
#define EVENTS  256
#define CHUNK   (64 * 1024)

static const char request[] = "GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
static char chunk[CHUNK];
static int epoll_fd;

static double now_us(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1e6 + at.tv_nsec / 1e3;
}

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* --- samples ------------------------------------------------------------------- */

static double *samples;
static size_t samples_used, samples_room;

static void add_sample(double value) {
    if (samples_used == samples_room) {
        samples_room = samples_room ? samples_room * 2 : 1 << 16;
        samples = realloc(samples, samples_room * sizeof *samples);
        if (!samples)
            die("memory for samples");
    }
    samples[samples_used++] = value;
}

static int ascending(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static double percentile(double part) {
    if (!samples_used)
        return -1;
    return samples[(size_t)(part * (samples_used - 1) + 0.5)];
}

static void print_samples(double seconds, long errors) {
    qsort(samples, samples_used, sizeof *samples, ascending);
    printf("{\"count\": %zu, \"errors\": %ld, \"seconds\": %.4f, \"per_second\": %.2f, \"p50_us\": %.1f, "
           "\"p90_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f}\n",
           samples_used, errors, seconds, samples_used / seconds, percentile(0.50), percentile(0.90), percentile(0.99),
           percentile(1.0));
    fflush(stdout);
}

/* --- sockets ------------------------------------------------------------------- */

static struct sockaddr_in address_of(const char *host, const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        fprintf(stderr, "load: %s is not an IPv4 address\n", host);
        exit(1);
    }
    return address;
}

static void watch(int fd, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event))
        die("epoll_ctl");
}

static int begin_connect(const struct sockaddr_in *to) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    if (fd >= MAX_FDS)
        die("too many descriptors");
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (const struct sockaddr *)to, sizeof *to) && errno != EINPROGRESS)
        die("connect");
    watch(fd, EPOLLOUT, EPOLL_CTL_ADD);
    return fd;
}

static int connected(int fd) {
    int error = 0;
    socklen_t size = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
}

/* --- echo ---------------------------------------------------------------------- */

/* Messages here are small and answered before the next one comes, so that what does not
 * fit into the socket's buffer (EAGAIN on send) would be a mistake in the benchmark. */
static void echo_back(int fd) {
    for (;;) {
        ssize_t got = recv(fd, chunk, sizeof chunk, 0);
        if (got < 0 && errno == EAGAIN)
            return;
        if (got <= 0 || send(fd, chunk, got, MSG_NOSIGNAL) != got) {
            close(fd);
            return;
        }
        if ((size_t)got < sizeof chunk)
            return;
    }
}

_Noreturn static void echo(const char *port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, 16384))
        die("listen");
    watch(listener, EPOLLIN, EPOLL_CTL_ADD);
    struct epoll_event events[EVENTS];
    for (;;) {
        int ready = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                echo_back(fd);
                continue;
            }
            int accepted;
            while ((accepted = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                watch(accepted, EPOLLIN, EPOLL_CTL_ADD);
            }
        }
    }
}

/* --- new connections ----------------------------------------------------------- */

static double begun_at[MAX_FDS];
static long reply_bytes[MAX_FDS];

static void begin_request(const struct sockaddr_in *to) {
    double begun = now_us();
    int fd = begin_connect(to);
    begun_at[fd] = begun;
    reply_bytes[fd] = -1; /* not connected yet */
}

/* Returns 1 when the connection is done, with the number of bytes replied; -1 when it failed. */
static int go_on(int fd) {
    if (reply_bytes[fd] < 0) {
        if (!connected(fd) || send(fd, request, sizeof request - 1, MSG_NOSIGNAL) != sizeof request - 1)
            return -1;
        reply_bytes[fd] = 0;
        watch(fd, EPOLLIN, EPOLL_CTL_MOD);
        return 0;
    }
    for (;;) {
        ssize_t got = recv(fd, chunk, sizeof chunk, 0);
        if (got > 0) {
            if (reply_bytes[fd] == 0 && (got < 12 || memcmp(chunk, "HTTP/1.1 200", 12)))
                return -1;
            reply_bytes[fd] += got;
        } else if (got == 0) {
            return reply_bytes[fd] > 0 ? 1 : -1;
        } else {
            return errno == EAGAIN ? 0 : -1;
        }
    }
}

static int conns(const struct sockaddr_in *to, double seconds, int concurrency) {
    double start = now_us(), end = start + seconds * 1e6, last = start;
    long errors = 0;
    int open_now = 0;
    struct epoll_event events[EVENTS];
    for (; open_now < concurrency; open_now++)
        begin_request(to);
    while (open_now) {
        int ready = epoll_wait(epoll_fd, events, EVENTS, 5000);
        if (ready == 0) { /* five seconds without any progress: what is open counts as failed */
            errors += open_now;
            break;
        }
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd, outcome = go_on(fd);
            if (!outcome)
                continue;
            close(fd);
            last = now_us();
            if (outcome > 0)
                add_sample(last - begun_at[fd]);
            else
                errors++;
            open_now--;
            if (last < end && errors < 1000) {
                begin_request(to);
                open_now++;
            }
        }
    }
    print_samples((last - start) / 1e6, errors);
    return 0;
}

/* --- ping-pong ----------------------------------------------------------------- */

static int pingpong(const struct sockaddr_in *to, double seconds, int bytes) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    struct timeval limit = {.tv_sec = 20};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(fd, (const struct sockaddr *)to, sizeof *to))
        die("connect");
    double start = now_us(), before = start;
    while (before < start + seconds * 1e6) {
        if (send(fd, chunk, bytes, MSG_NOSIGNAL) != bytes)
            die("send");
        for (int left = bytes; left;) {
            ssize_t got = recv(fd, chunk, left, 0);
            if (got <= 0)
                die("recv");
            left -= got;
        }
        double after = now_us();
        add_sample(after - before);
        before = after;
    }
    print_samples((before - start) / 1e6, 0);
    return 0;
}

/* --- messages on many connections ---------------------------------------------- */

#define MESSAGE_BYTES 64

static void send_message(int fd) {
    if (send(fd, chunk, MESSAGE_BYTES, MSG_NOSIGNAL) != MESSAGE_BYTES)
        die("send");
    begun_at[fd] = now_us();
    reply_bytes[fd] = 0;
}

static int messages(const struct sockaddr_in *to, double seconds, int connections) {
    struct epoll_event events[EVENTS];
    double start = now_us(), last = start;
    for (int i = 0; i < connections; i++) {
        int fd = begin_connect(to);
        struct pollfd up = {.fd = fd, .events = POLLOUT};
        if (poll(&up, 1, 20000) != 1 || !connected(fd))
            die("connect");
        watch(fd, EPOLLIN, EPOLL_CTL_MOD);
        send_message(fd);
    }
    while (last < start + seconds * 1e6) {
        int ready = epoll_wait(epoll_fd, events, EVENTS, 20000);
        if (!ready)
            die("nothing comes back");
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            ssize_t got = recv(fd, chunk, MESSAGE_BYTES - reply_bytes[fd], 0);
            if (got <= 0)
                die("recv");
            reply_bytes[fd] += got;
            if (reply_bytes[fd] < MESSAGE_BYTES)
                continue;
            last = now_us();
            add_sample(last - begun_at[fd]);
            send_message(fd);
        }
    }
    print_samples((last - start) / 1e6, 0);
    return 0;
}

/* --- connects ------------------------------------------------------------------ */

/* Client and acceptor are one: connect(2) returns when the kernel has done the handshake with itself, and nobody has to be
 * woken.  A reset at the end, or the ports would be in TIME_WAIT soon.  Only connect(2) is timed. */
static int connects(const struct sockaddr_in *to, int count, int listener) {
    struct linger reset = {.l_onoff = 1};
    char go;
    while (read(0, &go, 1) == 1) {
        double start = now_us();
        samples_used = 0;
        alarm(30); /* an accept that waits for what went elsewhere */
        for (int i = 0; i < count; i++) {
            int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), accepted;
            if (fd < 0)
                die("socket");
            double before = now_us();
            if (connect(fd, (const struct sockaddr *)to, sizeof *to))
                die("connect");
            add_sample(now_us() - before);
            if ((accepted = accept(listener, NULL, NULL)) < 0)
                die("accept");
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
            close(fd);
            close(accepted);
        }
        print_samples((now_us() - start) / 1e6, 0);
    }
    return 0;
}

/* --- idle connections ---------------------------------------------------------- */

static int hold(const struct sockaddr_in *to, int count, int concurrency) {
    double start = now_us();
    int begun = 0, done = 0;
    long errors = 0;
    struct epoll_event events[EVENTS];
    while (done + errors < count) {
        for (; begun < count && begun - done - errors < concurrency; begun++)
            begin_request(to);
        int ready = epoll_wait(epoll_fd, events, EVENTS, 10000);
        if (ready == 0) {
            errors += begun - done - errors;
            break;
        }
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (reply_bytes[fd] < 0 && connected(fd) && send(fd, "x", 1, MSG_NOSIGNAL) == 1) {
                reply_bytes[fd] = 0;
                watch(fd, EPOLLIN, EPOLL_CTL_MOD);
            } else if (reply_bytes[fd] == 0 && recv(fd, chunk, 1, 0) == 1) {
                reply_bytes[fd] = 1;
                watch(fd, 0, EPOLL_CTL_MOD);
                done++;
            } else { /* refused, reset or closed, possibly after it had been counted as open */
                if (reply_bytes[fd] == 1)
                    done--;
                close(fd);
                errors++;
            }
        }
    }
    printf("{\"open\": %d, \"errors\": %ld, \"seconds\": %.3f}\n", done, errors, (now_us() - start) / 1e6);
    fflush(stdout);
    while (read(0, chunk, sizeof chunk) > 0) {
    }
    return 0;
}

int main(int argc, char **argv) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    signal(SIGPIPE, SIG_IGN);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (argc == 3 && !strcmp(argv[1], "echo"))
        echo(argv[2]);
    if (argc == 6) {
        struct sockaddr_in to = address_of(argv[2], argv[3]);
        if (!strcmp(argv[1], "conns"))
            return conns(&to, atof(argv[4]), atoi(argv[5]));
        if (!strcmp(argv[1], "pingpong"))
            return pingpong(&to, atof(argv[4]), atoi(argv[5]));
        if (!strcmp(argv[1], "messages"))
            return messages(&to, atof(argv[4]), atoi(argv[5]));
        if (!strcmp(argv[1], "connects"))
            return connects(&to, atoi(argv[4]), atoi(argv[5]));
        if (!strcmp(argv[1], "hold"))
            return hold(&to, atoi(argv[4]), atoi(argv[5]));
    }
    fprintf(stderr, "load: see the top of load.c for its arguments\n");
    return 1;
}
