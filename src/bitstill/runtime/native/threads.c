/* A small thread pool. One team works at a time; a call that arrives meanwhile runs on its own thread only, so that
   concurrent callers never use more threads than the callers and one team. */
#include "threads.h"

#include <stdlib.h>

#if defined(_WIN32)

void bs_parallel(bs_body body, void *argument, int threads) {
    bs_member member = {0, 1};
    (void)threads;
    body(argument, &member);
}
void bs_barrier(bs_member *member) { (void)member; }

#else

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define MAX_THREADS 64
#define CACHE_LINE 64
#define SPINS 4000        /* spins before a waiting thread yields */
#define AWAKE_SPINS 20000 /* spins before an idle thread sleeps: some tens of microseconds */

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ __volatile__("yield")
#else
#define RELAX() ((void)0)
#endif

static struct {
    pthread_mutex_t team; /* held while a team works */
    pthread_mutex_t lock; /* for the condition */
    pthread_cond_t woken;
    int workers, sleepers;
    atomic_uint call; /* counts teams */
    _Alignas(CACHE_LINE) atomic_int arrived; /* threads at the barrier */
    _Alignas(CACHE_LINE) atomic_int round;   /* number of the barrier's round */
    atomic_int leaving;
    bs_body body;
    void *argument;
    int threads;
} pool = {.team = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .woken = PTHREAD_COND_INITIALIZER};

static unsigned first_call[MAX_THREADS]; /* by worker: earlier calls do not concern it */

static unsigned current_call(void) { return atomic_load_explicit(&pool.call, memory_order_acquire); }

static void relax_or_yield(int spins) {
    if (spins < SPINS) RELAX();
    else sched_yield();
}

void bs_barrier(bs_member *member) {
    if (member->threads == 1) return;
    int round = atomic_load_explicit(&pool.round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool.arrived, 1, memory_order_acq_rel) == member->threads - 1) {
        atomic_store_explicit(&pool.arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool.round, round + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&pool.round, memory_order_acquire) == round; spins++)
        relax_or_yield(spins);
}

/* Waits for a call after `seen`. */
static void await_call(unsigned seen) {
    for (int spins = 0; current_call() == seen && spins < AWAKE_SPINS; spins++) RELAX();
    if (current_call() != seen) return;
    pthread_mutex_lock(&pool.lock);
    pool.sleepers++;
    while (current_call() == seen) pthread_cond_wait(&pool.woken, &pool.lock);
    pool.sleepers--;
    pthread_mutex_unlock(&pool.lock);
}

static void *worker(void *number) {
    int thread = (int)(intptr_t)number;
    unsigned seen = first_call[thread];
    for (;;) {
        await_call(seen);
        seen++; /* a team ends only after every worker has seen the call, so that none is missed */
        if (thread < pool.threads) {
            bs_member member = {thread, pool.threads};
            pool.body(pool.argument, &member);
        }
        atomic_fetch_sub_explicit(&pool.leaving, 1, memory_order_release);
    }
    return NULL;
}

static void after_fork(void) {
    /* A child process has no workers, but may have inherited locked mutexes. */
    pthread_mutex_init(&pool.team, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.woken, NULL);
    pool.workers = pool.sleepers = 0;
    atomic_store(&pool.arrived, 0);
    atomic_store(&pool.leaving, 0);
}

static void start_workers(int count) {
    static int registered;
    if (!registered) registered = pthread_atfork(NULL, NULL, after_fork) == 0;
    while (pool.workers < count) {
        pthread_t thread;
        first_call[pool.workers + 1] = atomic_load(&pool.call);
        void *number = (void *)(intptr_t)(pool.workers + 1);
        if (pthread_create(&thread, NULL, worker, number) != 0) return; /* continue with fewer */
        pthread_detach(thread);
        pool.workers++;
    }
}

/* Runs body on the caller and `threads` - 1 workers, and waits until all have finished. */
static void run_team(bs_body body, void *argument, int threads) {
    pool.body = body, pool.argument = argument, pool.threads = threads;
    atomic_store_explicit(&pool.leaving, pool.workers, memory_order_relaxed);
    atomic_fetch_add_explicit(&pool.call, 1, memory_order_release);
    pthread_mutex_lock(&pool.lock);
    if (pool.sleepers) pthread_cond_broadcast(&pool.woken);
    pthread_mutex_unlock(&pool.lock);
    bs_member member = {0, threads};
    body(argument, &member);
    for (int spins = 0; atomic_load_explicit(&pool.leaving, memory_order_acquire) > 0; spins++) relax_or_yield(spins);
}

void bs_parallel(bs_body body, void *argument, int threads) {
    if (threads > MAX_THREADS - 1) threads = MAX_THREADS - 1;
    if (threads > 1 && pthread_mutex_trylock(&pool.team) == 0) {
        start_workers(threads - 1);
        int present = pool.workers + 1, alone = present == 1;
        if (!alone) run_team(body, argument, threads < present ? threads : present);
        pthread_mutex_unlock(&pool.team);
        if (!alone) return;
    }
    bs_member member = {0, 1};
    body(argument, &member);
}

#endif
