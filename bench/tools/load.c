/* load: SMTP clients for the benchmark; one process, one epoll.
 *
 * Closed loop (default): --connections clients, each sends its next message as soon as the last one is answered.
 * Open loop (--rate): message i is due at start + i / rate, on a connection of its own, and its latency counts from
 * the moment when it was due: a server that falls behind cannot hide it by slowing the clients down.
 *
 * MAIL, RCPT and DATA go out in one segment (RFC 2920), as bulk senders do; --stepwise waits for each reply instead.
 * A message whose content was sent but not answered is never sent again: its fate is the server's, and is counted as
 * "unanswered". --accepted FILE receives the bitmap of the messages that were answered 250.
 *
 * Content: fixed-width header fields, so that every message has exactly --size bytes on the wire before the final dot.
 * "X-Bench: RUN SEQ DUE_NS BODY_BYTES BODY_SUM" lets the sink know each message again.
 *
 * --starttls goes over to TLS on each connection, with a full handshake each time; --auth BASE64 then says AUTH PLAIN with this
 * initial response. Both need the build with TLS (-DWITH_TLS -lssl -lcrypto), which is bench/build/load-tls.
 *
 * Prints one JSON object.
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
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

enum phase {
    CLOSED,    /* no socket */
    BANNER,    /* awaits 220 */
    GREETING,  /* awaits the reply to EHLO */
    STARTING,  /* awaits the reply to STARTTLS */
    HANDSHAKE, /* TLS is being negotiated */
    LOGGING_IN, /* awaits the reply to AUTH */
    ENVELOPE,  /* awaits the replies to MAIL, RCPT, DATA */
    EMPTY_DOT, /* 354 came although nobody will get the message: awaits the reply to a lone dot */
    CONTENT,   /* awaits the reply to the final dot */
    RESETTING, /* awaits the reply to RSET */
    QUITTING   /* awaits 221 */
};

enum { MAIL, RCPT, DATA, STEPS };

struct client {
    int fd;
    enum phase phase;
    bool wants_write, pipelining;
#ifdef WITH_TLS
    SSL *tls;
#endif
    int step;        /* which reply of the envelope comes next */
    int refused;     /* first code >= 400 of this envelope, or 0 */
    long sequence;   /* the message in hand, or -1 */
    int64_t due_ns;  /* when that one was due */
    int64_t opened_ns;
    long on_this_connection;
    char head[1024]; /* what goes out first: commands, or header fields */
    size_t head_length, sent;
    const char *tail; /* what follows: the body */
    size_t tail_length, received;
    char input[4096];
};

static struct {
    const char *host, *accepted_path, *auth;
    int port, connections, domains;
    long run, messages, per_connection;
    size_t size;
    double seconds, rate, stall_seconds;
    bool stepwise, starttls;
} options = {.host = "127.0.0.1", .port = 2525, .connections = 20, .domains = 100, .run = 1, .per_connection = 100,
             .size = 5120, .stall_seconds = 30};

static struct {
    long attempted, accepted, refused[600], unanswered, connections, connect_errors, broken, in_hand;
    char last_refusal[128], tls[96];
    long resumed;
} tally;

static struct client *clients, **idle; /* idle: the closed ones, a stack */
static int idle_count;
static struct bitmap accepted_set;
static struct samples latency;
static int poller, timer = -1;
static struct sockaddr_in server;
static char *body;
static size_t body_length;
static uint32_t body_sum;
static int64_t start_ns, deadline_ns, last_accept_ns, last_progress_ns;
static long *put_back, put_back_count, put_back_room;
static volatile sig_atomic_t interrupted;

/* ---- which message next ---- */

static bool nothing_left(void) {
    if (interrupted) return true;
    if (options.seconds > 0 && monotonic_ns() >= deadline_ns) return true;
    return options.messages && tally.attempted >= options.messages && !put_back_count;
}

static int64_t due_time(long n) { return start_ns + (int64_t)((double)n * 1e9 / options.rate); }

/* Gives the client its next message; false when none is due (or left). */
static bool take_message(struct client *c) {
    if (nothing_left()) return false;
    int64_t now = monotonic_ns();
    if (put_back_count) {
        c->sequence = put_back[--put_back_count];
        c->due_ns = options.rate > 0 ? due_time(c->sequence) : now;
    } else {
        if (options.messages && tally.attempted >= options.messages) return false;
        if (tally.attempted >= BITMAP_LIMIT) return false;
        if (options.rate > 0 && due_time(tally.attempted) > now) return false;
        c->sequence = tally.attempted++;
        c->due_ns = options.rate > 0 ? due_time(c->sequence) : now;
    }
    tally.in_hand++;
    return true;
}

static void return_message(struct client *c) {
    if (put_back_count == put_back_room) {
        put_back_room = put_back_room ? put_back_room * 2 : 64;
        put_back = must(realloc(put_back, (size_t)put_back_room * sizeof *put_back));
    }
    put_back[put_back_count++] = c->sequence;
    c->sequence = -1;
    tally.in_hand--;
}

/* ---- the wire ---- */

#ifdef WITH_TLS
static SSL_CTX *tls_context;

/* What OpenSSL answered, as read() and writev() would have said it. */
static ssize_t tls_result(struct client *c, int n) {
    if (n > 0) return n;
    switch (SSL_get_error(c->tls, n)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE: errno = EAGAIN; return -1;
    case SSL_ERROR_ZERO_RETURN: return 0;
    default:
        ERR_clear_error();
        errno = ECONNRESET;
        return -1;
    }
}

static ssize_t wire_read(struct client *c, void *p, size_t n) {
    return c->tls ? tls_result(c, SSL_read(c->tls, p, (int)n)) : read(c->fd, p, n);
}

static ssize_t wire_write(struct client *c, const struct iovec *v, int n) {
    return c->tls ? tls_result(c, SSL_write(c->tls, v[0].iov_base, (int)v[0].iov_len)) : writev(c->fd, v, n);
}

/* Whether there is more to read that the socket will not tell of. */
static bool wire_pending(const struct client *c) { return c->phase != CLOSED && c->tls && SSL_pending(c->tls) > 0; }

static void wire_close(struct client *c) {
    if (c->tls) SSL_free(c->tls);
    c->tls = NULL;
    close(c->fd);
}
#else
static ssize_t wire_read(struct client *c, void *p, size_t n) { return read(c->fd, p, n); }
static ssize_t wire_write(struct client *c, const struct iovec *v, int n) { return writev(c->fd, v, n); }
static bool wire_pending(const struct client *c) {
    (void)c;
    return false;
}
static void wire_close(struct client *c) { close(c->fd); }
#endif

static void watch(struct client *c, bool wants_write) {
    if (c->wants_write == wants_write) return;
    c->wants_write = wants_write;
    struct epoll_event e = {.events = EPOLLIN | (wants_write ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static int push(struct client *c) {
    size_t total = c->head_length + c->tail_length;
    while (c->sent < total) {
        struct iovec v[2];
        int parts = 0;
        if (c->sent < c->head_length)
            v[parts++] = (struct iovec){c->head + c->sent, c->head_length - c->sent};
        size_t into_tail = c->sent > c->head_length ? c->sent - c->head_length : 0;
        if (into_tail < c->tail_length)
            v[parts++] = (struct iovec){(char *)(uintptr_t)c->tail + into_tail, c->tail_length - into_tail};
        ssize_t n = wire_write(c, v, parts);
        if (n < 0) {
            if (errno != EAGAIN) return -1;
            watch(c, true);
            return 0;
        }
        c->sent += (size_t)n;
    }
    watch(c, false);
    return 0;
}

static int say(struct client *c, enum phase next, const char *text) {
    c->phase = next;
    c->head_length = strlen(text);
    memcpy(c->head, text, c->head_length);
    c->tail_length = c->sent = 0;
    return push(c);
}

static void open_connection(struct client *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        tally.connect_errors++;
        return;
    }
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) && errno != EINPROGRESS) {
        tally.connect_errors++;
        close(c->fd);
        return;
    }
    tally.connections++;
    c->phase = BANNER;
    c->opened_ns = monotonic_ns();
    c->on_this_connection = 0;
    c->head_length = c->tail_length = c->sent = c->received = 0;
    c->wants_write = c->pipelining = false;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
}

/* The connection is gone; `expected` when we had said QUIT. */
static void close_connection(struct client *c, bool expected) {
    if (!expected) {
        if (c->phase == BANNER) tally.connect_errors++;
        else tally.broken++;
    }
    if (c->sequence >= 0) {
        if (c->phase == CONTENT) {
            tally.unanswered++;
            tally.in_hand--;
            c->sequence = -1;
        } else {
            return_message(c);
        }
    }
    wire_close(c);
    c->phase = CLOSED;
    idle[idle_count++] = c;
}

/* ---- the conversation ---- */

static int send_step(struct client *c) {
    char text[512];
    int domain = (int)(c->sequence % options.domains) + 1;
    switch (c->step) {
    case MAIL: return say(c, ENVELOPE, "MAIL FROM:<bench@sender.test>\r\n");
    case RCPT:
        snprintf(text, sizeof text, "RCPT TO:<user%ld@d%d.test>\r\n", c->sequence, domain);
        return say(c, ENVELOPE, text);
    default: return say(c, ENVELOPE, "DATA\r\n");
    }
}

static int begin_message(struct client *c) {
    c->step = MAIL;
    c->refused = 0;
    if (options.stepwise || !c->pipelining) return send_step(c);
    char text[512];
    snprintf(text, sizeof text, "MAIL FROM:<bench@sender.test>\r\nRCPT TO:<user%ld@d%d.test>\r\nDATA\r\n", c->sequence,
             (int)(c->sequence % options.domains) + 1);
    return say(c, ENVELOPE, text);
}

static size_t header_fields(char *out, size_t room, long sequence, int64_t due_ns) {
    return (size_t)snprintf(out, room,
                            "Date: Sun, 22 Nov 2026 00:00:00 +0000\r\nFrom: Bench <bench@sender.test>\r\n"
                            "To: user%09ld@d%04d.test\r\nSubject: benchmark message\r\n"
                            "Message-ID: <%010ld.%010ld@sender.test>\r\nMIME-Version: 1.0\r\n"
                            "Content-Type: text/plain; charset=us-ascii\r\n"
                            "X-Bench: %010ld %010ld %020lld %010zu %010u\r\n\r\n",
                            sequence, (int)(sequence % options.domains) + 1, options.run, sequence, options.run, sequence,
                            (long long)due_ns, body_length, body_sum);
}

static int send_content(struct client *c) {
    c->phase = CONTENT;
    c->head_length = header_fields(c->head, sizeof c->head, c->sequence, c->due_ns);
    c->tail = body;
    c->tail_length = body_length + 3; /* with the final dot */
    c->sent = 0;
    return push(c);
}

/* The session is between messages: the next one, or QUIT. */
static int proceed(struct client *c) {
    bool spent = options.per_connection && c->on_this_connection >= options.per_connection;
    if (c->sequence < 0 && !spent) take_message(c);
    if (c->sequence >= 0) return begin_message(c);
    return say(c, QUITTING, "QUIT\r\n");
}

static int introduce(struct client *c) { return say(c, GREETING, "EHLO client.bench.test\r\n"); }

#ifdef WITH_TLS
static bool secure(const struct client *c) { return c->tls != NULL; }

static int shake_hands(struct client *c) {
    int n = SSL_do_handshake(c->tls);
    if (n != 1) {
        int trouble = SSL_get_error(c->tls, n);
        if (trouble == SSL_ERROR_WANT_READ || trouble == SSL_ERROR_WANT_WRITE) {
            watch(c, trouble == SSL_ERROR_WANT_WRITE);
            return 0;
        }
        ERR_clear_error();
        return -1;
    }
    watch(c, false);
    last_progress_ns = monotonic_ns();
    tally.resumed += SSL_session_reused(c->tls);
    if (!tally.tls[0])
        snprintf(tally.tls, sizeof tally.tls, "%s %s", SSL_get_version(c->tls), SSL_get_cipher_name(c->tls));
    return introduce(c);
}

static int begin_tls(struct client *c) {
    c->tls = must(SSL_new(tls_context));
    SSL_set_fd(c->tls, c->fd);
    SSL_set_connect_state(c->tls);
    c->phase = HANDSHAKE;
    return shake_hands(c);
}

static void prepare_tls(void) {
    tls_context = must(SSL_CTX_new(TLS_client_method()));
    /* a full handshake for each connection, and no look at the certificate: it is the server that is measured */
    SSL_CTX_set_session_cache_mode(tls_context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_verify(tls_context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_mode(tls_context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                      SSL_MODE_RELEASE_BUFFERS);
}
#else
static bool secure(const struct client *c) {
    (void)c;
    return false;
}
static int shake_hands(struct client *c) {
    (void)c;
    return -1;
}
static int begin_tls(struct client *c) { return shake_hands(c); }
static void prepare_tls(void) {
    fputs("this build has no TLS\n", stderr);
    exit(2);
}
#endif

/* EHLO was answered: the next thing to do before mail. */
static int greeted(struct client *c) {
    if (options.starttls && !secure(c)) return say(c, STARTING, "STARTTLS\r\n");
    if (!options.auth) return proceed(c);
    char text[512];
    snprintf(text, sizeof text, "AUTH PLAIN %s\r\n", options.auth);
    return say(c, LOGGING_IN, text);
}

static int finish_message(struct client *c, int code) {
    if (code == 250) {
        int64_t now = monotonic_ns();
        samples_add(&latency, now - c->due_ns);
        bitmap_add(&accepted_set, c->sequence);
        tally.accepted++;
        last_accept_ns = now;
    } else {
        tally.refused[code < 600 ? code : 599]++;
    }
    tally.in_hand--;
    c->sequence = -1;
    c->on_this_connection++;
    return c->phase == CONTENT ? proceed(c) : say(c, RESETTING, "RSET\r\n");
}

static int on_envelope_reply(struct client *c, int code) {
    int step = c->step++;
    if (code >= 400 && !c->refused) c->refused = code;
    if (options.stepwise || !c->pipelining) {
        if (c->refused) return finish_message(c, c->refused);
        if (c->step < STEPS) return send_step(c);
    } else if (step != DATA) {
        return 0;
    }
    if (code == 354) return c->refused ? say(c, EMPTY_DOT, ".\r\n") : send_content(c);
    return finish_message(c, c->refused ? c->refused : code);
}

/* One whole reply; -1 ends the connection. */
static int on_reply(struct client *c, int code, const char *line) {
    last_progress_ns = monotonic_ns();
    if (code >= 400) {
        snprintf(tally.last_refusal, sizeof tally.last_refusal, "%.100s", line);
        if (code == 421) return -1;
    }
    switch (c->phase) {
    case BANNER: return code == 220 ? introduce(c) : -1;
    case GREETING: return code == 250 ? greeted(c) : -1;
    case STARTING: return code == 220 ? begin_tls(c) : -1;
    case LOGGING_IN: return code == 235 ? proceed(c) : -1;
    case ENVELOPE: return on_envelope_reply(c, code);
    case EMPTY_DOT: return finish_message(c, c->refused);
    case CONTENT: return finish_message(c, code);
    case RESETTING: return code == 250 ? proceed(c) : -1;
    default: return -1;
    }
}

static int read_some(struct client *c) {
    ssize_t n = wire_read(c, c->input + c->received, sizeof c->input - 1 - c->received);
    if (n <= 0) return n < 0 && errno == EAGAIN ? 0 : -1;
    c->received += (size_t)n;
    char *line = c->input, *end = c->input + c->received, *newline;
    while (line < end && (newline = memchr(line, '\n', (size_t)(end - line)))) {
        *newline = 0;
        if (newline - line < 3) return -1;
        if (c->phase == GREETING && !strncasecmp(line + 4, "PIPELINING", 10)) c->pipelining = true;
        if (line[3] != '-' && on_reply(c, atoi(line), line)) return -1;
        line = newline + 1;
    }
    c->received = (size_t)(end - line);
    memmove(c->input, line, c->received);
    return c->received == sizeof c->input - 1 ? -1 : 0;
}

static int on_readable(struct client *c) {
    do {
        if (read_some(c)) return -1;
    } while (wire_pending(c));
    return 0;
}

/* Closed clients go to work while there are messages for them. */
static void employ(void) {
    while (idle_count && take_message(idle[idle_count - 1])) {
        struct client *c = idle[idle_count - 1];
        open_connection(c);
        if (c->phase == CLOSED) { /* no socket to be had: again at the next look */
            return_message(c);
            return;
        }
        idle_count--;
    }
}

/* ---- the run ---- */

static void make_body(void) {
    char scratch[1024];
    size_t fields = header_fields(scratch, sizeof scratch, 0, 0);
    size_t wanted = options.size > fields + 80 ? options.size - fields : 80;
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 ,";
    body = must(malloc(wanted + 256));
    uint64_t state = 0x9E3779B97F4A7C15u;
    for (long line = 0; body_length < wanted; line++) {
        size_t room = wanted - body_length, text = room >= 160 ? 76 : room > 80 ? room / 2 - 2 : room - 2;
        for (size_t i = 0; i < text; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            body[body_length++] = alphabet[state >> 58];
        }
        /* dot-stuffed as a sender must: a relay that forgets to undo or redo it is noticed */
        if (line % 8 == 3) memcpy(body + body_length - text, "..", 2);
        memcpy(body + body_length, "\r\n", 2);
        body_length += 2;
    }
    body_sum = byte_sum(body, body_length);
    memcpy(body + body_length, ".\r\n", 3);
}

static void arm_timer(void) {
    int64_t due = due_time(tally.attempted);
    struct itimerspec t = {.it_value = {.tv_sec = due / 1000000000, .tv_nsec = due % 1000000000}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &t, NULL);
}

static bool gave_up(int64_t now) {
    if ((double)(now - last_progress_ns) > options.stall_seconds * 1e9) return true;
    return tally.connect_errors + tally.broken > 1000 && tally.connect_errors + tally.broken > tally.accepted;
}

/* Returns true when the run ended because nothing moved any more. */
static bool run(void) {
    struct epoll_event events[256];
    int64_t looked_ns = 0;
    for (;;) {
        int64_t now = monotonic_ns();
        if (now - looked_ns > 50000000) {
            looked_ns = now;
            /* an overflowing accept queue can leave a connection that only this side believes in */
            for (int i = 0; i < options.connections; i++)
                if (clients[i].phase == BANNER && now - clients[i].opened_ns > 5000000000) close_connection(&clients[i], false);
            if (gave_up(now)) return true;
            employ();
        }
        if (idle_count == options.connections && nothing_left()) return false;
        /* with every client busy it is the next close that brings us back, not the timer */
        if (options.rate > 0 && idle_count && !nothing_left()) arm_timer();
        int n = epoll_wait(poller, events, 256, 50);
        for (int i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;
            if (!c) { /* the timer: the next message of the open loop is due */
                uint64_t expirations;
                if (read(timer, &expirations, sizeof expirations) > 0) employ();
                continue;
            }
            if (c->phase == CLOSED) continue;
            if (c->phase == HANDSHAKE) {
                if (shake_hands(c)) close_connection(c, false);
                continue;
            }
            bool quitting = c->phase == QUITTING;
            if ((events[i].events & EPOLLOUT) && push(c)) {
                close_connection(c, quitting);
            } else if ((events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && on_readable(c)) {
                close_connection(c, quitting || c->phase == QUITTING);
            }
            if (c->phase == CLOSED && quitting) employ();
        }
    }
}

static void report(bool stalled) {
    char percentiles[256];
    samples_json(&latency, percentiles, sizeof percentiles);
    double seconds = (double)(last_accept_ns - start_ns) / 1e9;
    for (char *p = tally.last_refusal; *p; p++)
        if (*p == '"' || *p == '\\' || (unsigned char)*p < ' ' || (unsigned char)*p > '~') *p = '?';
    printf("{\"run\": %ld, \"attempted\": %ld, \"accepted\": %ld, \"refused\": {", options.run, tally.attempted,
           tally.accepted);
    const char *comma = "";
    for (int code = 0; code < 600; code++)
        if (tally.refused[code]) {
            printf("%s\"%d\": %ld", comma, code, tally.refused[code]);
            comma = ", ";
        }
    printf("}, \"unanswered\": %ld, \"unsent\": %ld, \"connections\": %ld, \"connect_errors\": %ld, \"broken\": %ld, "
           "\"seconds\": %.4f, \"rate\": %.1f, \"started_ns\": %lld, \"latency_ms\": %s, \"cpu_seconds\": %.3f, "
           "\"stalled\": %s, \"last_refusal\": \"%s\", \"tls\": \"%s\", \"resumed\": %ld}\n",
           tally.unanswered, put_back_count + tally.in_hand, tally.connections, tally.connect_errors, tally.broken, seconds,
           seconds > 0 ? (double)tally.accepted / seconds : 0, (long long)start_ns, percentiles, own_cpu_seconds(),
           stalled ? "true" : "false", tally.last_refusal, tally.tls, tally.resumed);
}

static void on_signal(int number) {
    (void)number;
    interrupted = 1;
}

static void usage(void) {
    fputs("load --port PORT (--messages N | --seconds T) [--host ADDRESS] [--connections C] [--per-connection K]\n"
          "     [--size BYTES] [--domains D] [--rate PER_SECOND] [--run ID] [--accepted FILE] [--stepwise] [--stall S]\n"
          "     [--starttls] [--auth BASE64]\n",
          stderr);
    exit(2);
}

static void parse_options(int argc, char **argv) {
    static const struct option names[] = {
        {"host", 1, 0, 'h'},     {"port", 1, 0, 'p'},     {"connections", 1, 0, 'c'}, {"messages", 1, 0, 'm'},
        {"seconds", 1, 0, 'T'},  {"size", 1, 0, 'l'},     {"per-connection", 1, 0, 'k'}, {"domains", 1, 0, 'd'},
        {"rate", 1, 0, 'r'},     {"run", 1, 0, 'R'},      {"accepted", 1, 0, 'a'},    {"stepwise", 0, 0, 's'},
        {"stall", 1, 0, 'S'},    {"starttls", 0, 0, 't'}, {"auth", 1, 0, 'A'},        {0, 0, 0, 0}};
    for (int o; (o = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (o) {
        case 'h': options.host = optarg; break;
        case 'p': options.port = atoi(optarg); break;
        case 'c': options.connections = atoi(optarg); break;
        case 'm': options.messages = atol(optarg); break;
        case 'T': options.seconds = atof(optarg); break;
        case 'l': options.size = (size_t)atol(optarg); break;
        case 'k': options.per_connection = atol(optarg); break;
        case 'd': options.domains = atoi(optarg); break;
        case 'r': options.rate = atof(optarg); break;
        case 'R': options.run = atol(optarg); break;
        case 'a': options.accepted_path = optarg; break;
        case 's': options.stepwise = true; break;
        case 'S': options.stall_seconds = atof(optarg); break;
        case 't': options.starttls = true; break;
        case 'A': options.auth = optarg; break;
        default: usage();
        }
    bool bounded = options.messages > 0 || options.seconds > 0;
    if (!bounded || options.connections < 1 || options.domains < 1 || options.per_connection < 0) usage();
    if (options.auth && strlen(options.auth) > 400) usage();
    if (options.starttls) prepare_tls();
    if (options.rate > 0) options.per_connection = 1;
    server.sin_family = AF_INET;
    server.sin_port = htons((uint16_t)options.port);
    if (inet_pton(AF_INET, options.host, &server.sin_addr) != 1) usage();
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    die_with_parent();
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    make_body();
    poller = epoll_create1(EPOLL_CLOEXEC);
    clients = must(calloc((size_t)options.connections, sizeof *clients));
    idle = must(calloc((size_t)options.connections, sizeof *idle));
    for (int i = options.connections; i-- > 0;) {
        clients[i].sequence = -1;
        idle[idle_count++] = &clients[i];
    }
    if (options.rate > 0) {
        timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
        epoll_ctl(poller, EPOLL_CTL_ADD, timer, &e);
    }
    start_ns = last_accept_ns = last_progress_ns = monotonic_ns();
    deadline_ns = start_ns + (int64_t)(options.seconds * 1e9);
    bool stalled = run();
    report(stalled);
    if (options.accepted_path && bitmap_save(&accepted_set, options.accepted_path)) {
        perror(options.accepted_path);
        return 3;
    }
    return 0;
}
