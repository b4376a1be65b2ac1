/* Writing answers: every caller gets one, and none is written once the session is closed.
 *
 * Threads answer when a disk lets them, which may be after /dev/fuse was closed and its number given to another
 * file. They are not waited for, since a broken disk may keep one for ever: they find the session closed instead.
 */

#define _GNU_SOURCE
#include "_wire.h"

#include <errno.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#define LARGEST_ERRNO 511 /* the kernel takes no others (fs/fuse/dev.c, fuse_dev_do_write) */
#define MOST_TRIES 100	  /* a millisecond apart */

static pthread_rwlock_t session = PTHREAD_RWLOCK_INITIALIZER; /* held to read while an answer is written */
static int closed;

/* Writes to the device as writev(2) does, again where the failure is not for good. */
static ssize_t deliver(int device, const struct iovec *iov, int count)
{
	const struct timespec pause = {.tv_nsec = 1000000};
	ssize_t wrote;
	int tries = 0;

	for (;;) {
		wrote = writev(device, iov, count);
		if (wrote >= 0 || (errno != EINTR && errno != EAGAIN && errno != ENOMEM) || tries++ == MOST_TRIES)
			return wrote;
		if (errno != EINTR)
			nanosleep(&pause, NULL);
	}
}

/* Whether nobody waits for the answer any more: the caller was interrupted, or the filesystem unmounted. */
static int is_unwanted(int error)
{
	return error == ENOENT || error == ENODEV || error == ECONNABORTED;
}

/* The message of *count* parts, or EIO where the device takes it in no form. */
static ssize_t deliver_or_fail(int device, struct iovec *iov, int count)
{
	const struct fuse_out_header *header = iov[0].iov_base;
	struct fuse_out_header failure = {.len = sizeof(failure), .error = -EIO, .unique = header->unique};
	struct iovec instead = {&failure, sizeof(failure)};
	ssize_t wrote = -1;
	int error = EINVAL;

	if (!header->unique) /* a notification: nobody waits for it */
		return deliver(device, iov, count);
	if (header->error <= 0 && header->error >= -LARGEST_ERRNO) {
		wrote = deliver(device, iov, count);
		error = errno;
	}
	if (wrote >= 0 || is_unwanted(error)) {
		errno = error;
		return wrote;
	}
	fprintf(stderr, "layerfs: cannot answer request %llu (error %d, %u bytes): %s: answering EIO\n",
		(unsigned long long)header->unique, -header->error, header->len, strerror(error));
	wrote = deliver(device, &instead, 1);
	return wrote < 0 ? wrote : header->len;
}

ssize_t send_answer(int device, struct iovec *iov, int count)
{
	ssize_t wrote = -1;

	pthread_rwlock_rdlock(&session);
	if (closed)
		errno = ENODEV;
	else
		wrote = deliver_or_fail(device, iov, count);
	pthread_rwlock_unlock(&session);
	return wrote;
}

int answer(int device, uint64_t unique, int error, const void *payload, size_t size)
{
	struct fuse_out_header header = {
		.len = sizeof(header) + size,
		.error = -error,
		.unique = unique,
	};
	struct iovec iov[2] = {{&header, sizeof(header)}, {(void *)payload, size}};

	send_answer(device, iov, size ? 2 : 1);
	return 1;
}

/* -- for Python --------------------------------------------------------------------------------------- */

static PyObject *stop_answering(PyObject *self, PyObject *nothing)
{
	Py_BEGIN_ALLOW_THREADS
	pthread_rwlock_wrlock(&session);
	closed = 1;
	pthread_rwlock_unlock(&session);
	Py_END_ALLOW_THREADS
	Py_RETURN_NONE;
}

PyMethodDef answer_methods[] = {
	{"stop_answering", stop_answering, METH_NOARGS,
	 "Write nothing to the device from now on: it is about to be closed, and threads may still be at work."},
	{NULL, NULL, 0, NULL},
};
