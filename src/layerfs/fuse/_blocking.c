/* What may have to wait for a disk: a few threads do it, and answer, while everything else goes on.
 *
 * Reads come here when their data is not in memory, and fsync always. Large writes come here so that the next one
 * is fetched from the kernel meanwhile, and because a write waits, too, where much is to be written already.
 */

#define _GNU_SOURCE
#include "_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST_THREADS 8
#define LARGE_READ (1 << 17)
#define READ_AHEAD (8 << 20)
#define MOST_WRITES 4 /* under way; more are done by who brings them, and so hold up those that follow */
#define MOST_SYNCS 4  /* likewise; more go to Python's threads, so that reads and writes never wait for them here */

struct job {
	struct job *next;
	int device, file;
	uint64_t unique, offset;
	uint32_t size;
	char *request, *data; /* of a write: the buffer, which is ours now, and where in it the data is */
	struct write_time *time;
	int (*sync)(int);     /* fsync(2) or fdatasync(2), if that is what to do */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static pthread_cond_t written = PTHREAD_COND_INITIALIZER;
static struct job *first, **last = &first;
static int threads, idle, writes, syncs;
static char *spare[MOST_WRITES];
static int spares;

static void answer(const struct job *job, int error, void *payload, size_t size)
{
	struct fuse_out_header header = {.len = sizeof(header) + size, .error = -error, .unique = job->unique};
	struct iovec iov[2] = {{&header, sizeof(header)}, {payload, size}};

	(void)!writev(job->device, iov, size ? 2 : 1);
}

static void do_read(const struct job *job, char *buffer)
{
	uint32_t done = 0;
	ssize_t got = 0;

	if (job->size >= LARGE_READ) /* several of us read one file: the kernel sees no sequence in that */
		readahead(job->file, job->offset, READ_AHEAD);
	while (done < job->size) {
		got = pread(job->file, buffer + done, job->size - done, job->offset + done);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		done += got;
	}
	answer(job, got < 0 && !done ? errno : 0, buffer, done);
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

static void do_write(const struct job *job)
{
	struct fuse_write_out out = {.size = job->size};
	int error = write_all(job->file, job->data, job->size, job->offset);

	end_write(job->time, job->file);
	/* It counts as done before the kernel hears of it: what the kernel does next may rely on that. */
	pthread_mutex_lock(&lock);
	writes--;
	if (spares < MOST_WRITES)
		spare[spares++] = job->request;
	else
		free(job->request);
	pthread_cond_broadcast(&written);
	pthread_mutex_unlock(&lock);
	answer(job, error, &out, error ? 0 : sizeof(out));
}

static void do_sync(const struct job *job)
{
	int error = job->sync(job->file) ? errno : 0;

	pthread_mutex_lock(&lock);
	syncs--;
	pthread_mutex_unlock(&lock);
	answer(job, error, NULL, 0);
}

static void *work(void *nothing)
{
	char *buffer = NULL;
	size_t room = 0;

	pthread_mutex_lock(&lock);
	for (;;) {
		struct job *job;

		while (!first) {
			idle++;
			pthread_cond_wait(&more, &lock);
			idle--;
		}
		job = first;
		first = job->next;
		if (!first)
			last = &first;
		pthread_mutex_unlock(&lock);
		if (job->request) {
			do_write(job);
		} else if (job->sync) {
			do_sync(job);
		} else {
			if (room < job->size) {
				free(buffer);
				buffer = malloc(job->size);
				room = buffer ? job->size : 0;
			}
			if (buffer)
				do_read(job, buffer);
			else
				answer(job, ENOMEM, NULL, 0);
		}
		close(job->file);
		free(job);
		pthread_mutex_lock(&lock);
	}
	return nothing;
}

/* Hands *what* to a thread; 0 where that cannot be. */
static int hand_over(struct job what)
{
	struct job *job = malloc(sizeof(*job));

	what.file = job ? fcntl(what.file, F_DUPFD_CLOEXEC, 0) : -1; /* the other may be closed meanwhile */
	if (what.file < 0) {
		free(job);
		return 0;
	}
	*job = what;
	pthread_mutex_lock(&lock);
	if (!idle && threads < MOST_THREADS) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, work, NULL) == 0) {
			pthread_detach(thread);
			threads++;
		}
	}
	if (!threads || (job->request && writes >= MOST_WRITES) || (job->sync && syncs >= MOST_SYNCS)) {
		pthread_mutex_unlock(&lock);
		close(job->file);
		free(job);
		return 0;
	}
	writes += !!job->request;
	syncs += !!job->sync;
	*last = job;
	last = &job->next;
	pthread_cond_signal(&more);
	pthread_mutex_unlock(&lock);
	return 1;
}

int answer_read_later(int device, uint64_t unique, int file, uint64_t offset, uint32_t size)
{
	return hand_over((struct job){
		.device = device, .file = file, .unique = unique, .offset = offset, .size = size});
}

int answer_write_later(int device, uint64_t unique, int file, uint64_t offset, uint32_t size, char *request,
		       char *data, struct write_time *time)
{
	return hand_over((struct job){.device = device,
				      .file = file,
				      .unique = unique,
				      .offset = offset,
				      .size = size,
				      .request = request,
				      .data = data,
				      .time = time});
}

int answer_sync_later(int device, uint64_t unique, int file, int data_only)
{
	return hand_over((struct job){
		.device = device, .file = file, .unique = unique, .sync = data_only ? fdatasync : fsync});
}

char *request_buffer(size_t size)
{
	char *buffer = NULL;

	pthread_mutex_lock(&lock);
	if (spares)
		buffer = spare[--spares];
	pthread_mutex_unlock(&lock);
	return buffer ? buffer : malloc(size);
}

int writes_under_way(void)
{
	int count;

	pthread_mutex_lock(&lock);
	count = writes;
	pthread_mutex_unlock(&lock);
	return count;
}

/* -- for Python --------------------------------------------------------------------------------------- */

static PyObject *pending_writes(PyObject *self, PyObject *nothing)
{
	return PyLong_FromLong(writes_under_way());
}

static PyObject *wait_for_writes(PyObject *self, PyObject *nothing)
{
	Py_BEGIN_ALLOW_THREADS
	pthread_mutex_lock(&lock);
	while (writes)
		pthread_cond_wait(&written, &lock);
	pthread_mutex_unlock(&lock);
	Py_END_ALLOW_THREADS
	Py_RETURN_NONE;
}

PyMethodDef blocking_methods[] = {
	{"pending_writes", pending_writes, METH_NOARGS, "Return how many writes threads are doing now."},
	{"wait_for_writes", wait_for_writes, METH_NOARGS,
	 "Return when threads are doing no writes; to be called where none can be begun meanwhile."},
	{NULL, NULL, 0, NULL},
};
