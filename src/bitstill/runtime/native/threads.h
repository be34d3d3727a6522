/* Threads that run the same steps in parallel, with barriers between them. */
#ifndef BITSTILL_THREADS_H
#define BITSTILL_THREADS_H

#include <stdint.h>

/* A thread's index in a team, and the size of the team. */
typedef struct {
    int thread, threads;
} bs_member;

/* Pieces `from` to `to` - 1 of the work. */
typedef struct {
    int64_t from, to;
} bs_part;

typedef void (*bs_body)(void *argument, bs_member *member);

/* Runs body on up to `threads` threads; only on the caller's if the others are busy with another call. */
void bs_parallel(bs_body body, void *argument, int threads);
/* Waits until all threads of the team have arrived. */
void bs_barrier(bs_member *member);
/* This thread's share of a number of equal pieces. */
static inline bs_part bs_share(const bs_member *member, int64_t pieces) {
    return (bs_part){pieces * member->thread / member->threads, pieces * (member->thread + 1) / member->threads};
}

#endif
