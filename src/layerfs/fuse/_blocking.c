/* What may have to wait for a disk: a few threads do it, and answer, while everything else goes on.
 *
 * Reads come here when their data is not in memory, and fsync always. Large writes come here so that the next one
 * is fetched from the kernel meanwhile, and because a write waits, too, where much is to be written already; so does
 * fallocate, which counts as a write. Each kind has threads of its own: where a broken disk holds up all reads, the
 * others go on.
 */

#define _GNU_SOURCE
#include "_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#define LARGE_READ (1 << 17)
#define MOST_WRITES 4 /* under way; more are done by who brings them, and so hold up those that follow */
#define MOST_SYNCS 4  /* likewise; more go to Python's threads */
#define MOST_READS 8  /* at once; more wait until one of them is done */
#define STACK (128 << 10)
#define MOST_TRIES 3

struct job {
	struct job *next;
	struct pool *pool;
	void (*run)(const struct job *, char **);
	int device, file;
	uint64_t unique, offset;
	uint64_t serial; /* of what writes: they are counted */
	uint64_t length; /* to read, write or allocate */
	uint32_t ahead;	 /* of a read: as much after it will be wanted, too */
	char *request;	 /* of a write: the buffer, which is ours now, and where in it the data is */
	const char *data;
	struct write_time *time; /* of what writes */
	int mode;	    /* of fallocate(2) */
	int data_only; /* of a sync */
};

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

/* Reads up to *size* bytes, fewer only at the end of the file; returns 0 or an errno.
 *
 * The kernel fills a short answer with zeros. So one is given only where the file ends, and what was read before
 * an error is not. That the file is longer by now than what was read is no error if it has just grown. */
static int read_all(const struct job *job, char *buffer, size_t size, size_t *done)
{
	int tries = 0;

	*done = 0;
	while (*done < size) {
		ssize_t got = pread(job->file, buffer + *done, size - *done, job->offset + *done);
		struct stat st;

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return errno;
		*done += got;
		if (got)
			continue;
		if (fstat(job->file, &st))
			return errno;
		if (st.st_size <= (off_t)(job->offset + *done))
			return 0;
		if (++tries == MOST_TRIES)
			return EIO;
	}
	return 0;
}

/* Notes that a job is done, before the kernel hears of it: what the kernel does next may rely on that. */
static void count_off(const struct job *job)
{
	pthread_mutex_lock(&lock);
	job->pool->jobs--;
	if (job->serial) {
		for (size_t i = 0; i < MOST_WRITES; i++)
			if (serials[i] == job->serial)
				serials[i] = 0;
		pthread_cond_broadcast(&written);
	}
	pthread_mutex_unlock(&lock);
}

static void do_read(const struct job *job, char **buffer)
{
	size_t done = 0;
	int error = ENOMEM;

	if (!*buffer)
		*buffer = malloc(LARGEST_READ);
	if (job->length >= LARGE_READ)
		readahead(job->file, job->offset, job->length + job->ahead);
	if (*buffer)
		error = read_all(job, *buffer, job->length, &done);
	count_off(job);
	answer(job->device, job->unique, error, *buffer, error ? 0 : done);
}

int write_all(int file, const char *data, uint32_t size, uint64_t offset)
{
	uint32_t done = 0;

	while (done < size) { /* after a short write the next one says why */
		ssize_t wrote = pwrite(file, data + done, size - done, offset + done);

		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote <= 0)
			return wrote < 0 ? errno : EIO;
		done += wrote;
	}
	return 0;
}

int allocate(int file, int mode, uint64_t offset, uint64_t length)
{
	while (fallocate(file, mode, offset, length))
		if (errno != EINTR)
			return errno;
	return 0;
}

static void do_write(const struct job *job, char **buffer)
{
	struct fuse_write_out out = {.size = job->length};
	int error = write_all(job->file, job->data, job->length, job->offset);

	end_write(job->time, job->file);
	release_buffer(job->request);
	count_off(job);
	answer(job->device, job->unique, error, &out, error ? 0 : sizeof(out));
}

static void do_allocate(const struct job *job, char **buffer)
{
	int error = allocate(job->file, job->mode, job->offset, job->length);

	end_write(job->time, job->file);
	count_off(job);
	answer(job->device, job->unique, error, NULL, 0);
}

static void do_sync(const struct job *job, char **buffer)
{
	int error = sync_file(job->file, job->data_only);

	count_off(job);
	answer(job->device, job->unique, error, NULL, 0);
}

static void *work(void *argument)
{
	struct pool *pool = argument;
	char *buffer = NULL; /* for what is read */

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
		job->run(job, &buffer);
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

/* Hands *what* to a thread; 0 where that cannot be. */
static int hand_over(struct job what)
{
	struct job *job = malloc(sizeof(*job));
	int taken;

	what.file = job ? fcntl(what.file, F_DUPFD_CLOEXEC, 0) : -1; /* the other may be closed meanwhile */
	if (what.file < 0) {
		free(job);
		return 0;
	}
	*job = what;
	pthread_mutex_lock(&lock);
	taken = enqueue(job->pool, job);
	pthread_mutex_unlock(&lock);
	if (!taken) {
		close(what.file);
		free(job);
	}
	return taken;
}

int answer_read_later(int device, uint64_t unique, int file, uint64_t offset, uint32_t size, uint32_t ahead)
{
	return hand_over((struct job){.pool = &reads,
				      .run = do_read,
				      .device = device,
				      .file = file,
				      .unique = unique,
				      .offset = offset,
				      .length = size,
				      .ahead = ahead});
}

int answer_write_later(int device, uint64_t unique, int file, uint64_t offset, uint32_t size, char *request,
		       const char *data, struct write_time *time)
{
	return hand_over((struct job){.pool = &writes,
				      .run = do_write,
				      .device = device,
				      .file = file,
				      .unique = unique,
				      .offset = offset,
				      .length = size,
				      .request = request,
				      .data = data,
				      .time = time});
}

int answer_fallocate_later(int device, uint64_t unique, int file, int mode, uint64_t offset, uint64_t length,
			   struct write_time *time)
{
	return hand_over((struct job){.pool = &writes,
				      .run = do_allocate,
				      .device = device,
				      .file = file,
				      .unique = unique,
				      .offset = offset,
				      .length = length,
				      .mode = mode,
				      .time = time});
}

int answer_sync_later(int device, uint64_t unique, int file, int data_only)
{
	return hand_over((struct job){.pool = &syncs,
				      .run = do_sync,
				      .device = device,
				      .file = file,
				      .unique = unique,
				      .data_only = data_only});
}

int writes_under_way(void)
{
	int count;

	pthread_mutex_lock(&lock);
	count = writes.jobs;
	pthread_mutex_unlock(&lock);
	return count;
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
	return PyLong_FromLong(writes_under_way());
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
