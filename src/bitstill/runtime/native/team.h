/* Threads that run the same steps together, waiting for each other between them. */
#ifndef BITSTILL_TEAM_H
#define BITSTILL_TEAM_H

#include <stdint.h>

/* One thread's place in a team. */
typedef struct {
    int thread, threads;
} bs_work;

typedef void (*bs_body)(void *what, bs_work *work);

/* Runs body on up to so many threads; on the caller's alone where the others are busy with somebody else's work. */
void bs_together(bs_body body, void *what, int threads);
/* Returns when all threads of the team are here. */
void bs_wait(bs_work *work);
/* This thread's part of so many equal pieces. */
static inline void bs_share(const bs_work *work, int64_t pieces, int64_t *from, int64_t *to) {
    *from = pieces * work->thread / work->threads;
    *to = pieces * (work->thread + 1) / work->threads;
}

#endif
