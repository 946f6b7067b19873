/* sink: the receiving mail exchangers of the benchmark; one process, one epoll.
 *
 * Listens on --addresses consecutive IPv4 addresses from --bind on, all on one --port (0: any free one), answers EHLO
 * with PIPELINING, 8BITMIME and SIZE, accepts everything, stores nothing. By the X-Bench field that load.c writes it
 * counts the messages of the current run: unique, duplicates, damaged (the body's length or sum is not what was sent;
 * also counted as unique or duplicate), and foreign (other runs, no such field). Latency is from the time in the field.
 *
 * Prints "ready PORT" when it listens. --control PATH is a Unix socket with one command per line:
 *   reset RUN     forget everything, count this run from now on      -> {"ok": true}
 *   delay MS      answer each final dot only after so long           -> {"ok": true}
 *   save PATH     write the bitmap of the messages that came         -> {"ok": true}
 *   stat          the counters                                       -> {...}
 * TLS is left out; it would go where read() and write() are called.
 */
#define _GNU_SOURCE
#include "common.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum kind { LISTENER, CONTROL_LISTENER, CONTROL, SESSION };
enum state { COMMAND, HEADER, BODY, PAUSED };

#define INPUT_ROOM 131072
#define OUTPUT_ROOM 16384

struct channel {
    enum kind kind;
    int fd;
    struct channel *next_free;
    unsigned generation; /* tells a late timer that the channel has been used for another session since */
    /* sessions */
    enum state state;
    bool closing, blocked;
    long length, pending; /* bytes in input; in output */
    /* the message being read */
    bool known;
    long run, sequence;
    int64_t due_ns;
    size_t body_expected, body_length;
    uint32_t sum_expected, sum;
    char *input, *output;
};

struct late_reply {
    int64_t at_ns;
    struct channel *to;
    unsigned generation;
};

static struct {
    long run, unique, duplicates, damaged, foreign, sessions, open, most_open;
    long long bytes;
    int64_t first_ns, last_ns;
    struct bitmap seen;
    struct samples latency;
} count;

static int poller;
static struct channel *unused;
static struct late_reply *late;
static size_t late_first, late_end, late_room;
static int64_t delay_ns;
static volatile sig_atomic_t stopping;

static struct channel *channel_new(enum kind kind, int fd) {
    struct channel *c = unused;
    if (c) unused = c->next_free;
    else c = must(calloc(1, sizeof *c));
    unsigned generation = c->generation + 1;
    char *input = c->input, *output = c->output;
    *c = (struct channel){.kind = kind, .fd = fd, .generation = generation, .input = input, .output = output};
    if (kind != LISTENER && kind != CONTROL_LISTENER && !c->input) {
        c->input = must(malloc(INPUT_ROOM));
        c->output = must(malloc(OUTPUT_ROOM));
    }
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    return c;
}

static void channel_drop(struct channel *c) {
    if (c->fd < 0) return;
    if (c->kind == SESSION) count.open--;
    close(c->fd);
    c->fd = -1;
    c->generation++;
    c->next_free = unused;
    unused = c;
}

static void listen_for(struct channel *c, uint32_t events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

/* ---- output ---- */

static void put(struct channel *c, const char *text) {
    size_t n = strlen(text);
    if ((size_t)c->pending + n > OUTPUT_ROOM) {
        c->closing = true; /* a client that does not read what it asked for */
        return;
    }
    memcpy(c->output + c->pending, text, n);
    c->pending += (long)n;
}

/* -1 when the channel is finished. */
static int flush_output(struct channel *c) {
    if (c->pending) {
        ssize_t n = write(c->fd, c->output, (size_t)c->pending);
        if (n < 0 && errno != EAGAIN) return -1;
        if (n > 0) {
            c->pending -= n;
            memmove(c->output, c->output + n, (size_t)c->pending);
        }
    }
    bool blocked = c->pending > 0;
    if (blocked != c->blocked) {
        c->blocked = blocked;
        listen_for(c, blocked ? EPOLLOUT : EPOLLIN);
    }
    return c->closing && !blocked ? -1 : 0;
}

/* ---- messages ---- */

static void begin_message(struct channel *c) {
    c->known = false;
    c->body_length = c->sum = 0;
}

/* Header fields [start, end): find out whose message this is. A relay adds fields above, and may fold none of ours. */
static void read_header(struct channel *c, const char *start, const char *end) {
    static const char name[] = "\nX-Bench: ";
    const char *field = memmem(start, (size_t)(end - start), name, sizeof name - 1);
    if (!field) return;
    char text[128];
    size_t n = (size_t)(end - field) - (sizeof name - 1);
    if (n > sizeof text - 1) n = sizeof text - 1;
    memcpy(text, field + sizeof name - 1, n);
    text[n] = 0;
    long long due;
    c->known = sscanf(text, "%ld %ld %lld %zu %u", &c->run, &c->sequence, &due, &c->body_expected, &c->sum_expected) == 5;
    c->due_ns = due;
}

static void end_message(struct channel *c) {
    int fresh = c->known && c->run == count.run ? bitmap_add(&count.seen, c->sequence) : -1;
    if (fresh < 0) {
        count.foreign++;
        return;
    }
    if (c->body_length != c->body_expected || c->sum != c->sum_expected) count.damaged++;
    if (!fresh) {
        count.duplicates++;
        return;
    }
    int64_t now = monotonic_ns();
    if (!count.unique++) count.first_ns = now;
    count.last_ns = now;
    samples_add(&count.latency, now - c->due_ns);
}

static void answer_dot(struct channel *c) {
    if (!delay_ns) {
        put(c, "250 2.0.0 Ok\r\n");
        c->state = COMMAND;
        return;
    }
    if (late_end == late_room) {
        if (late_first > late_room / 2) {
            memmove(late, late + late_first, (late_end - late_first) * sizeof *late);
            late_end -= late_first;
            late_first = 0;
        } else {
            late_room = late_room ? late_room * 2 : 1024;
            late = must(realloc(late, late_room * sizeof *late));
        }
    }
    late[late_end++] = (struct late_reply){monotonic_ns() + delay_ns, c, c->generation};
    c->state = PAUSED;
}

/* "CR LF . CR LF" in [p, end), or NULL. Dots are rare in what we read, so that memchr is the fast way. */
static char *find_end(char *p, const char *end) {
    for (char *dot = p + 2; end - dot >= 3 && (dot = memchr(dot, '.', (size_t)(end - dot) - 2)); dot++)
        if (dot[1] == '\r' && dot[2] == '\n' && dot[-1] == '\n' && dot[-2] == '\r') return dot - 2;
    return NULL;
}

static void take_body(struct channel *c, const char *p, size_t n) {
    c->body_length += n;
    c->sum += byte_sum(p, n);
    count.bytes += (long long)n;
}

/* ---- the conversation ---- */

static void on_command(struct channel *c, const char *line) {
    switch (*line | 32) {
    case 'e': put(c, "250-sink.bench.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 104857600\r\n"); break;
    case 'h': put(c, "250 sink.bench.test\r\n"); break;
    case 'm': put(c, "250 2.1.0 Ok\r\n"); break;
    case 'n': put(c, "250 2.0.0 Ok\r\n"); break;
    case 'r': put(c, (line[1] | 32) == 'c' ? "250 2.1.5 Ok\r\n" : "250 2.0.0 Ok\r\n"); break;
    case 'd':
        put(c, "354 Go ahead\r\n");
        c->state = HEADER;
        begin_message(c);
        break;
    case 'q':
        put(c, "221 2.0.0 Bye\r\n");
        c->closing = true;
        break;
    default: put(c, "502 5.5.2 Unknown command\r\n");
    }
}

/* Works off the input; leaves what is not yet complete. */
static int advance(struct channel *c) {
    char *p = c->input, *end = c->input + c->length;
    while (p < end && c->state != PAUSED && !c->closing) {
        if (c->state == COMMAND) {
            char *newline = memchr(p, '\n', (size_t)(end - p));
            if (!newline) break;
            on_command(c, p);
            p = newline + 1;
            if (c->state == HEADER && p - c->input >= 2) {
                /* the DATA line's own CR LF lets a message that begins with the final dot be found like any other */
                p -= 2;
                p[0] = '\r';
                p[1] = '\n';
            }
        } else if (c->state == HEADER) {
            char *final = find_end(p, end);
            char *blank = memmem(p, (size_t)(final ? final - p : end - p), "\r\n\r\n", 4);
            if (blank) {
                read_header(c, p, blank + 2);
                p = blank + 2; /* the blank line's CR LF stays, as context for an empty body's final dot */
                c->body_length -= 2;
                c->sum -= '\r' + '\n';
                count.bytes -= 2;
                c->state = BODY;
            } else if (final) {
                p = final + 5;
                end_message(c);
                answer_dot(c);
            } else if (end - p > INPUT_ROOM / 2) {
                c->state = BODY; /* no header of ours is so long: foreign */
            } else {
                break;
            }
        } else {
            char *final = find_end(p, end);
            if (!final) {
                if (end - p > 4) {
                    take_body(c, p, (size_t)(end - p) - 4);
                    p = end - 4;
                }
                break;
            }
            take_body(c, p, (size_t)(final - p) + 2);
            p = final + 5;
            end_message(c);
            answer_dot(c);
        }
    }
    c->length = end - p;
    if (c->length && p != c->input) memmove(c->input, p, (size_t)c->length);
    if (c->length == INPUT_ROOM && c->state == COMMAND) return -1; /* a command line without end */
    if (c->state == PAUSED) listen_for(c, 0);
    return flush_output(c);
}

static void send_late_replies(void) {
    int64_t now = monotonic_ns();
    while (late_first < late_end && late[late_first].at_ns <= now) {
        struct late_reply r = late[late_first++];
        if (r.to->generation != r.generation) continue;
        put(r.to, "250 2.0.0 Ok\r\n");
        r.to->state = COMMAND;
        r.to->blocked = false;
        listen_for(r.to, EPOLLIN);
        if (advance(r.to)) channel_drop(r.to);
    }
}

/* ---- control ---- */

static void on_control(struct channel *c, char *line) {
    char text[1024], percentiles[256];
    if (!strncmp(line, "reset ", 6)) {
        count.run = atol(line + 6);
        count.unique = count.duplicates = count.damaged = count.foreign = count.sessions = 0;
        count.bytes = count.first_ns = count.last_ns = count.latency.count = 0;
        count.most_open = count.open;
        bitmap_clear(&count.seen);
    } else if (!strncmp(line, "delay ", 6)) {
        delay_ns = (int64_t)(atof(line + 6) * 1e6);
    } else if (!strncmp(line, "save ", 5)) {
        if (bitmap_save(&count.seen, line + 5)) {
            put(c, "{\"ok\": false}\n");
            return;
        }
    } else if (!strcmp(line, "stat")) {
        samples_json(&count.latency, percentiles, sizeof percentiles);
        snprintf(text, sizeof text,
                 "{\"run\": %ld, \"unique\": %ld, \"duplicates\": %ld, \"damaged\": %ld, \"foreign\": %ld, "
                 "\"body_bytes\": %lld, \"connections\": %ld, \"most_open\": %ld, \"first_ns\": %lld, \"last_ns\": %lld, "
                 "\"latency_ms\": %s, \"cpu_seconds\": %.3f}\n",
                 count.run, count.unique, count.duplicates, count.damaged, count.foreign, count.bytes, count.sessions,
                 count.most_open, (long long)count.first_ns, (long long)count.last_ns, percentiles, own_cpu_seconds());
        put(c, text);
        return;
    } else {
        put(c, "{\"ok\": false}\n");
        return;
    }
    put(c, "{\"ok\": true}\n");
}

static int advance_control(struct channel *c) {
    char *p = c->input, *end = c->input + c->length, *newline;
    while (p < end && (newline = memchr(p, '\n', (size_t)(end - p)))) {
        *newline = 0;
        on_control(c, p);
        p = newline + 1;
    }
    c->length = end - p;
    memmove(c->input, p, (size_t)c->length);
    return flush_output(c);
}

/* ---- the loop ---- */

static void accept_all(struct channel *listener) {
    for (int fd; (fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        if (listener->kind == CONTROL_LISTENER) {
            channel_new(CONTROL, fd);
            continue;
        }
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct channel *c = channel_new(SESSION, fd);
        count.sessions++;
        if (++count.open > count.most_open) count.most_open = count.open;
        put(c, "220 sink.bench.test ESMTP\r\n");
        if (flush_output(c)) channel_drop(c);
    }
}

static int on_readable(struct channel *c) {
    ssize_t n = read(c->fd, c->input + c->length, (size_t)(INPUT_ROOM - c->length));
    if (n <= 0) return n < 0 && errno == EAGAIN ? 0 : -1;
    c->length += n;
    return c->kind == CONTROL ? advance_control(c) : advance(c);
}

static int next_timeout_ms(void) {
    if (late_first == late_end) return -1;
    int64_t left = late[late_first].at_ns - monotonic_ns();
    return left <= 0 ? 0 : (int)(left / 1000000) + 1;
}

static int listen_on(uint32_t address, int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(address)};
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 4096)) {
        fprintf(stderr, "sink: %s:%d: %s\n", inet_ntoa(a.sin_addr), port, strerror(errno));
        exit(1);
    }
    channel_new(LISTENER, fd);
    socklen_t n = sizeof a;
    getsockname(fd, (struct sockaddr *)&a, &n);
    return ntohs(a.sin_port);
}

static void listen_for_control(const char *path) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (strlen(path) >= sizeof a.sun_path) {
        fprintf(stderr, "sink: --control: the path is longer than a Unix socket's may be\n");
        exit(1);
    }
    strcpy(a.sun_path, path);
    unlink(path);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 8)) {
        perror(path);
        exit(1);
    }
    channel_new(CONTROL_LISTENER, fd);
}

static void on_signal(int number) {
    (void)number;
    stopping = 1;
}

int main(int argc, char **argv) {
    static const struct option names[] = {{"bind", 1, 0, 'b'},    {"addresses", 1, 0, 'n'}, {"port", 1, 0, 'p'},
                                          {"control", 1, 0, 'c'}, {"delay", 1, 0, 'd'},     {0, 0, 0, 0}};
    const char *first = "127.1.0.1", *control = NULL;
    int addresses = 1, port = 0;
    for (int o; (o = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (o) {
        case 'b': first = optarg; break;
        case 'n': addresses = atoi(optarg); break;
        case 'p': port = atoi(optarg); break;
        case 'c': control = optarg; break;
        case 'd': delay_ns = (int64_t)(atof(optarg) * 1e6); break;
        default:
            fputs("sink [--bind ADDRESS] [--addresses N] [--port PORT] [--control PATH] [--delay MS]\n", stderr);
            return 2;
        }
    die_with_parent();
    struct sigaction stop = {.sa_handler = on_signal}; /* without SA_RESTART: epoll_wait returns */
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(EPOLL_CLOEXEC);
    uint32_t address = ntohl(inet_addr(first));
    for (int i = 0; i < addresses; i++) port = listen_on(address + (uint32_t)i, port);
    if (control) listen_for_control(control);
    printf("ready %d\n", port);
    fflush(stdout);
    struct epoll_event events[256];
    while (!stopping) {
        int n = epoll_wait(poller, events, 256, next_timeout_ms());
        for (int i = 0; i < n; i++) {
            struct channel *c = events[i].data.ptr;
            if (c->fd < 0) continue;
            if (c->kind == LISTENER || c->kind == CONTROL_LISTENER) accept_all(c);
            else if (events[i].events & EPOLLOUT ? flush_output(c) : on_readable(c)) channel_drop(c);
        }
        send_late_replies();
    }
    if (control) unlink(control);
    return 0;
}
