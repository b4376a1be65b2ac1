/* What may have to wait for a disk: a few threads do it, and answer, while everything else goes on.
 *
 * Reads come here when their data is not in memory, and fsync always. Large writes come here so that the next one
 * is fetched from the kernel meanwhile, and because a write waits, too, where much is to be written already; so does
 * fallocate, which counts as a write. Each kind has threads of its own: where a broken disk holds up all reads, the
 * others go on.
 */

#define _GNU_SOURCE
#include "_wire.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#define MOST_WRITES 4 /* under way; more are done by who brings them, and so hold up those that follow */
#define MOST_SYNCS 4  /* likewise; more go to Python's threads */
#define MOST_READS 8  /* at once; more wait until one of them is done */
#define STACK (128 << 10)

struct pool {
	const int most; /* threads */
	const int most_jobs; /* waiting and being done; 0: any number */
	int threads, idle, waiting, jobs;
	struct job *first, *last;
	pthread_cond_t more;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t written = PTHREAD_COND_INITIALIZER;
static struct pool reads = {.most = MOST_READS, .more = PTHREAD_COND_INITIALIZER};
static struct pool writes = {
	.most = MOST_WRITES, .most_jobs = MOST_WRITES, .more = PTHREAD_COND_INITIALIZER};
static struct pool syncs = {.most = MOST_SYNCS, .most_jobs = MOST_SYNCS, .more = PTHREAD_COND_INITIALIZER};
static uint64_t last_serial;
static uint64_t serials[MOST_WRITES]; /* of the writes under way; 0: none */

/* Notes that a job is done, before the kernel hears of it: what the kernel does next may rely on that. */
static void count_off(struct pool *pool, const struct job *job)
{
	pthread_mutex_lock(&lock);
	pool->jobs--;
	if (job->serial) {
		for (size_t i = 0; i < MOST_WRITES; i++)
			if (serials[i] == job->serial)
				serials[i] = 0;
		pthread_cond_broadcast(&written);
	}
	pthread_mutex_unlock(&lock);
}

static void *work(void *argument)
{
	struct pool *pool = argument;
	char *buffer = NULL; /* for what is read */
	struct outcome outcome;

	pthread_mutex_lock(&lock);
	for (;;) {
		struct job *job;

		while (!pool->first) {
			pool->idle++;
			pthread_cond_wait(&pool->more, &lock);
			pool->idle--;
		}
		job = pool->first;
		pool->first = job->next;
		pool->waiting--;
		pthread_mutex_unlock(&lock);
		do_job(job, &buffer, &outcome);
		if (job->request)
			release_buffer(job->request);
		count_off(pool, job);
		answer_job(job, &outcome);
		close(job->file);
		free(job);
		pthread_mutex_lock(&lock);
	}
	return NULL;
}

static void start_thread(struct pool *pool)
{
	pthread_attr_t attributes;
	sigset_t all, before;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	sigfillset(&all); /* signals are for Python's threads */
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pool->threads += pthread_create(&thread, &attributes, work, pool) == 0;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
}

static uint64_t next_serial(void)
{
	size_t i = 0;

	while (serials[i]) /* there are not more of them than jobs in the pool */
		i++;
	return serials[i] = ++last_serial;
}

/* Has the pool do *job*, if there is a thread for it; whether it does. */
static int enqueue(struct pool *pool, struct job *job)
{
	if (pool->most_jobs && pool->jobs >= pool->most_jobs)
		return 0;
	if (pool->waiting >= pool->idle && pool->threads < pool->most)
		start_thread(pool);
	if (!pool->threads)
		return 0;
	if (pool == &writes)
		job->serial = next_serial();
	if (pool->first)
		pool->last->next = job;
	else
		pool->first = job;
	pool->last = job;
	pool->waiting++;
	pool->jobs++;
	pthread_cond_signal(&pool->more);
	return 1;
}

int hand_over(struct job what)
{
	struct pool *pool = what.opcode == FUSE_READ ? &reads : changes_data(&what) ? &writes : &syncs;
	struct job *job = malloc(sizeof(*job));
	int taken;

	what.file = job ? fcntl(what.file, F_DUPFD_CLOEXEC, 0) : -1; /* the other may be closed meanwhile */
	if (what.file < 0) {
		free(job);
		return 0;
	}
	*job = what;
	pthread_mutex_lock(&lock);
	taken = enqueue(pool, job);
	pthread_mutex_unlock(&lock);
	if (!taken) {
		close(what.file);
		free(job);
	}
	return taken;
}

/* Whether a write that was begun by the time of *serial* is not done yet. */
static int is_writing_since(uint64_t serial)
{
	for (size_t i = 0; i < MOST_WRITES; i++)
		if (serials[i] && serials[i] <= serial)
			return 1;
	return 0;
}

/* -- for Python --------------------------------------------------------------------------------------- */

static PyObject *pending_writes(PyObject *self, PyObject *nothing)
{
	int count;

	pthread_mutex_lock(&lock);
	count = writes.jobs;
	pthread_mutex_unlock(&lock);
	return PyLong_FromLong(count);
}

static PyObject *wait_for_writes(PyObject *self, PyObject *nothing)
{
	uint64_t until;

	Py_BEGIN_ALLOW_THREADS
	pthread_mutex_lock(&lock);
	until = last_serial;
	while (is_writing_since(until))
		pthread_cond_wait(&written, &lock);
	pthread_mutex_unlock(&lock);
	Py_END_ALLOW_THREADS
	Py_RETURN_NONE;
}

PyMethodDef blocking_methods[] = {
	{"pending_writes", pending_writes, METH_NOARGS, "Return how many writes threads are doing now."},
	{"wait_for_writes", wait_for_writes, METH_NOARGS,
	 "Return when the writes that threads are doing now are done, fallocate(2) among them."},
	{NULL, NULL, 0, NULL},
};
