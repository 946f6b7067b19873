/* common.h: what the load generator and the sink share: the clock, latency samples, message bitmaps. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>

/* Both programs run on one machine, so that CLOCK_MONOTONIC can be compared across them. */
static inline int64_t monotonic_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline double own_cpu_seconds(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static inline void *must(void *p) {
    if (!p) {
        fputs("out of memory\n", stderr);
        exit(3);
    }
    return p;
}

/* A tool must not outlive the benchmark that started it, however that one ends. */
static inline void die_with_parent(void) { prctl(PR_SET_PDEATHSIG, SIGTERM); }

/* ---- latency samples, in milliseconds ---- */

struct samples {
    float *ms;
    long count, room;
};

static inline void samples_add(struct samples *s, int64_t ns) {
    if (s->count == s->room) {
        s->room = s->room ? s->room * 2 : 65536;
        s->ms = must(realloc(s->ms, (size_t)s->room * sizeof *s->ms));
    }
    s->ms[s->count++] = (float)((double)ns / 1e6);
}

static int samples_order(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* {"p50": …} of the samples; sorts them in place, which later additions do not mind. */
static inline int samples_json(struct samples *s, char *out, size_t room) {
    if (!s->count) return snprintf(out, room, "{}");
    qsort(s->ms, (size_t)s->count, sizeof *s->ms, samples_order);
    long last = s->count - 1;
    return snprintf(out, room, "{\"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"max\": %.3f}", (double)s->ms[last / 2],
                    (double)s->ms[last * 9 / 10], (double)s->ms[last * 99 / 100], (double)s->ms[last]);
}

/* ---- sets of message numbers ---- */

struct bitmap {
    unsigned char *bytes;
    size_t size;
};

#define BITMAP_LIMIT ((long)1 << 27) /* 128 million messages, 16 MiB */

/* 1 when the number was new, 0 when it was there already, -1 when it is out of range. */
static inline int bitmap_add(struct bitmap *b, long n) {
    if (n < 0 || n >= BITMAP_LIMIT) return -1;
    size_t byte = (size_t)n / 8;
    unsigned char mask = (unsigned char)(1u << (n % 8));
    if (byte >= b->size) {
        size_t size = b->size ? b->size : 4096;
        while (size <= byte) size *= 2;
        b->bytes = must(realloc(b->bytes, size));
        memset(b->bytes + b->size, 0, size - b->size);
        b->size = size;
    }
    if (b->bytes[byte] & mask) return 0;
    b->bytes[byte] |= mask;
    return 1;
}

static inline void bitmap_clear(struct bitmap *b) {
    if (b->size) memset(b->bytes, 0, b->size);
}

static inline int bitmap_save(const struct bitmap *b, const char *path) {
    FILE *f = fopen(path, "wb");
    if (!f) return -1;
    size_t written = b->size ? fwrite(b->bytes, 1, b->size, f) : 0;
    return fclose(f) || written != b->size ? -1 : 0;
}

/* The sum that travels in X-Bench beside the length of the body: enough to notice a relay that alters content. */
static inline uint32_t byte_sum(const char *p, size_t n) {
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += (unsigned char)p[i];
    return sum;
}

#endif
