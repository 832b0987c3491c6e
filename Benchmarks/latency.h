// What the load generators share: the clock, and latencies in 64 linear steps of each power of two, so that a figure is wrong by
// less than 1.6 %.
#ifndef LATENCY_H
#define LATENCY_H
#include <stdint.h>
#include <time.h>

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

// A random time from half to one and a half times this many milliseconds, by dice with a fixed seed.
static inline uint64_t about_ns(double milliseconds) {
    static uint64_t dice = 88172645463325252ull;
    dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
    return (uint64_t)(milliseconds * 1e6 * (0.5 + (double)(dice % 1000) / 1000));
}

enum { STEPS = 64, STEP_BITS = 6, OCTAVES = 40 };
static uint64_t buckets[OCTAVES * STEPS], recorded, longest;
static double total;

static inline void record(uint64_t v) {
    int top = v < STEPS ? STEP_BITS : 63 - __builtin_clzll(v), shift = top - STEP_BITS;
    uint64_t slot = v < STEPS ? v : (uint64_t)(shift + 1) * STEPS + ((v >> shift) & (STEPS - 1));
    buckets[slot < OCTAVES * STEPS ? slot : OCTAVES * STEPS - 1]++;
    recorded++;
    total += (double)v;
    if (v > longest) longest = v;
}
static inline double quantile_ms(double q) {
    uint64_t want = (uint64_t)(q * (double)recorded), seen = 0;
    for (uint64_t i = 0; i < OCTAVES * STEPS; i++) {
        if ((seen += buckets[i]) <= want) continue;
        if (i < STEPS) return (double)i / 1e6;
        uint64_t shift = i / STEPS - 1;
        return (double)(((STEPS + i % STEPS) << shift) + ((1ull << shift) >> 1)) / 1e6;
    }
    return (double)longest / 1e6;
}
#endif
