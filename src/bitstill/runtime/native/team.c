/* A small pool of threads. One team works at a time; whoever comes meanwhile works alone, so that many callers at once never
   make more threads than there are callers and one team. */
#include "team.h"

#include <stdlib.h>

#if defined(_WIN32)

void bs_together(bs_body body, void *what, int threads) {
    bs_work work = {0, 1};
    (void)threads;
    body(what, &work);
}
void bs_wait(bs_work *work) { (void)work; }

#else

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define MOST 64
#define SPINS 4000       /* before a waiting thread lets others run */
#define AWAKE_SPINS 20000 /* that a thread without work spends looking for more before it sleeps: some tens of microseconds */

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ __volatile__("yield")
#else
#define RELAX() ((void)0)
#endif

static struct {
    pthread_mutex_t turn; /* held while a team works */
    pthread_mutex_t lock; /* of the bell */
    pthread_cond_t bell;
    int workers, sleepers;
    atomic_uint call;                                        /* counts teams */
    _Alignas(64) atomic_int here; _Alignas(64) atomic_int round; /* of the barrier */
    atomic_int leaving;
    bs_body body;
    void *what;
    int threads;
} pool = {.turn = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .bell = PTHREAD_COND_INITIALIZER};

static unsigned first_call[MOST];/* the call that a worker was made before */

void bs_wait(bs_work *work) {
    if (work->threads == 1) return;
    int round = atomic_load_explicit(&pool.round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool.here, 1, memory_order_acq_rel) == work->threads - 1) {
        atomic_store_explicit(&pool.here, 0, memory_order_relaxed);
        atomic_store_explicit(&pool.round, round + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&pool.round, memory_order_acquire) == round; spins++) {
        if (spins < SPINS) RELAX();
        else sched_yield();
    }
}

static void *worker(void *given) {
    int thread = (int)(intptr_t)given;
    unsigned seen = first_call[thread];
    for (;;) {
        for (int spins = 0; atomic_load_explicit(&pool.call, memory_order_acquire) == seen && spins < AWAKE_SPINS; spins++) RELAX();
        if (atomic_load_explicit(&pool.call, memory_order_acquire) == seen) {
            pthread_mutex_lock(&pool.lock);
            pool.sleepers++;
            while (atomic_load_explicit(&pool.call, memory_order_acquire) == seen) pthread_cond_wait(&pool.bell, &pool.lock);
            pool.sleepers--;
            pthread_mutex_unlock(&pool.lock);
        }
        seen++; /* a team leaves only when every worker has seen it, so that none is ever missed */
        if (thread < pool.threads) {
            bs_work work = {thread, pool.threads};
            pool.body(pool.what, &work);
        }
        atomic_fetch_sub_explicit(&pool.leaving, 1, memory_order_release);
    }
    return NULL;
}

static void after_fork(void) {
    /* Workers are not copied into a child, and their locks may have been. */
    pthread_mutex_init(&pool.turn, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.bell, NULL);
    pool.workers = pool.sleepers = 0;
    atomic_store(&pool.here, 0);
    atomic_store(&pool.leaving, 0);
}

static void hire(int wanted) {
    static int told;
    if (!told) told = pthread_atfork(NULL, NULL, after_fork) == 0;
    while (pool.workers < wanted) {
        pthread_t thread;
        first_call[pool.workers + 1] = atomic_load(&pool.call);
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)(pool.workers + 1)) != 0) return; /* then with fewer */
        pthread_detach(thread);
        pool.workers++;
    }
}

void bs_together(bs_body body, void *what, int threads) {
    if (threads > MOST - 1) threads = MOST - 1;
    if (threads > 1 && pthread_mutex_trylock(&pool.turn) == 0) {
        hire(threads - 1);
        if (threads > pool.workers + 1) threads = pool.workers + 1;
        if (threads > 1) {
            pool.body = body, pool.what = what, pool.threads = threads;
            atomic_store_explicit(&pool.leaving, pool.workers, memory_order_relaxed);
            atomic_fetch_add_explicit(&pool.call, 1, memory_order_release);
            pthread_mutex_lock(&pool.lock);
            if (pool.sleepers) pthread_cond_broadcast(&pool.bell);
            pthread_mutex_unlock(&pool.lock);
            bs_work work = {0, threads};
            body(what, &work);
            for (int spins = 0; atomic_load_explicit(&pool.leaving, memory_order_acquire) > 0; spins++) {
                if (spins < SPINS) RELAX();
                else sched_yield();
            }
            pthread_mutex_unlock(&pool.turn);
            return;
        }
        pthread_mutex_unlock(&pool.turn);
    }
    bs_work work = {0, 1};
    body(what, &work);
}

#endif
