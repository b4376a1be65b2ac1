/* Reading requests, and waiting for them.
 *
 * Waking up costs more than a small request's work, and a turn of the event loop as much again. So while
 * requests stream the next one is polled for, then waited for beside the event loop (on the device and on the
 * loop's own descriptor at once), and only then in it.
 */

#define _GNU_SOURCE
#include "_wire.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MOST_CREDIT 8
#define MOST_SPARE 4 /* buffers to keep for the next request */
/* Nanoseconds: */
#define OTHERS 200000 /* that a poll takes only if another process got the processor meanwhile */
#define REST 5000000  /* to leave the processors to those who want them then */
#define DOZE 10000000 /* to wait beside the event loop */
/* Nanoseconds after which the event loop is looked after, however fast requests come: */
#define LOOK 200000  /* to ask whether it has something to do */
#define TURN 1000000 /* to give it a turn, when it cannot be asked */
#define SOON 100000  /* to give it a turn, when tasks wait for that */

static uint64_t spin;          /* nanoseconds to poll for the next request, 0 for not at all */
static uint64_t no_spin_until; /* others want the processors */
static int credit;             /* how much polling has paid lately */
static int loop = -1;          /* readable when the event loop has something to do; -1: it has, or that is not known */
static int is_asked;           /* we are given it each time, unless it has tasks to run */
static uint64_t loop_deadline; /* when it has something to do anyway */
static int idle;               /* no request has come for a while */
static int wants_turn;         /* a task has been started */

/* What a request is read into. A write is done from it, by whoever takes it over (_blocking.c). */
struct buffer {
	struct buffer *next;
	size_t room;
	_Alignas(16) char bytes[];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct buffer *spare;
static int spares;

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

void give_turn(void)
{
	wants_turn = 1;
}

static struct buffer *buffer_of(char *bytes)
{
	return (struct buffer *)(bytes - offsetof(struct buffer, bytes));
}

void release_buffer(char *bytes)
{
	struct buffer *buffer = buffer_of(bytes);

	pthread_mutex_lock(&lock);
	if (spares < MOST_SPARE) {
		buffer->next = spare;
		spare = buffer;
		spares++;
		buffer = NULL;
	}
	pthread_mutex_unlock(&lock);
	free(buffer);
}

/* A buffer for *size* bytes, which is *bytes* if that has the room; NULL where there is no memory. */
static char *request_buffer(char *bytes, size_t size)
{
	struct buffer *buffer = bytes ? buffer_of(bytes) : NULL;

	while (!buffer || buffer->room < size) {
		free(buffer);
		pthread_mutex_lock(&lock);
		buffer = spare;
		if (buffer) {
			spare = buffer->next;
			spares--;
		}
		pthread_mutex_unlock(&lock);
		if (buffer)
			continue;
		buffer = malloc(sizeof(*buffer) + size);
		if (!buffer)
			return NULL;
		buffer->room = size;
	}
	return buffer->bytes;
}

/* Whether the event loop has tasks to run that have not had their turn. */
static int tasks_wait(void)
{
	return loop < 0 && is_asked;
}

/* Whether the event loop has something to do, and so should get its turn. */
static int loop_wants_turn(void)
{
	struct pollfd poll_loop = {.fd = loop, .events = POLLIN};

	return loop < 0 || now() >= loop_deadline || poll(&poll_loop, 1, 0);
}

/* Polls for a request as far as that pays; whether there is one. */
static int spin_for_request(int device)
{
	struct pollfd poll_device = {.fd = device, .events = POLLIN};
	uint64_t start, last, time;
	int found = 0;

	if (credit <= 0)
		return 0;
	start = time = now();
	do {
		found = poll(&poll_device, 1, 0);
		last = time;
		time = now();
	} while (!found && time - start < spin && time - last < OTHERS);
	if (time - last >= OTHERS)
		no_spin_until = time + REST;
	if (found)
		credit += credit < MOST_CREDIT;
	else
		credit--;
	return found;
}

/* Sleeps until there is a request, for some time, but not while the event loop has something to do. */
static int doze(int device)
{
	struct pollfd either[2] = {{.fd = device, .events = POLLIN}, {.fd = loop, .events = POLLIN}};
	uint64_t start = now();
	struct timespec patience;
	uint64_t left;

	if (loop < 0 || start >= loop_deadline)
		return 0;
	left = loop_deadline - start < DOZE ? loop_deadline - start : DOZE;
	patience = (struct timespec){.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
	ppoll(either, 2, &patience, NULL);
	if (either[0].revents) {
		if (start >= no_spin_until && credit <= 0 && now() - start < 2 * spin)
			credit = 1; /* it came so soon that polling would have met it */
		return 1;
	}
	idle = !either[1].revents && left == DOZE;
	return 0;
}

static int wait_for_request(int device)
{
	int found;

	if (tasks_wait())
		return 0;
	idle = loop < 0;
	Py_BEGIN_ALLOW_THREADS
	if (now() < no_spin_until)
		credit = 0;
	found = spin_for_request(device) || doze(device);
	Py_END_ALLOW_THREADS
	return found;
}

/* Reads requests until one comes that pyfuse3 is to answer, none is left, or it is others' turn.
 *
 * libfuse takes EINTR for "nothing this time"; pyfuse3 then waits in the event loop. */
static ssize_t next_request(int fd, void *buffer, size_t size)
{
	static char *request; /* libfuse's own cannot be given away */
	uint64_t start = now(), turn = tasks_wait() ? SOON : loop >= 0 ? LOOK : TURN;

	idle = wants_turn = 0;
	for (;;) {
		const struct fuse_in_header *header;
		ssize_t got;

		request = request_buffer(request, size);
		if (!request) {
			errno = ENOMEM;
			return -1;
		}
		got = read(fd, request, size);
		if (got < 0 && errno == EAGAIN) {
			if (wait_for_request(fd))
				continue;
			errno = EINTR;
			return -1;
		}
		if (got < (ssize_t)sizeof(*header))
			return got;
		header = (void *)request;
		if (!answer_directly(fd, &request, got)) {
			look_at_request(header, header + 1);
			memcpy(buffer, request, got);
			return got;
		}
		if (wants_turn || now() - start > turn) {
			if (wants_turn || loop_wants_turn()) {
				errno = EINTR;
				return -1;
			}
			start = now();
		}
	}
}

ssize_t read_request(int fd, void *buffer, size_t size, void *userdata)
{
	PyGILState_STATE state = PyGILState_Ensure(); /* pyfuse3 calls libfuse with or without the lock */
	ssize_t got = next_request(fd, buffer, size);
	int error = errno;

	loop = -1; /* who lets us wait beside it does so each time */
	PyGILState_Release(state);
	errno = error;
	return got;
}

/* -- for Python --------------------------------------------------------------------------------------- */

static PyObject *wait_beside(PyObject *self, PyObject *args)
{
	double seconds;

	if (!PyArg_ParseTuple(args, "id", &loop, &seconds))
		return NULL;
	is_asked = 1;
	loop_deadline = now() + (uint64_t)((seconds < 3600 ? seconds : 3600) * 1e9);
	Py_RETURN_NONE;
}

static PyObject *is_idle(PyObject *self, PyObject *nothing)
{
	return PyBool_FromLong(idle);
}

static PyObject *set_spin(PyObject *self, PyObject *nanoseconds)
{
	spin = PyLong_AsUnsignedLongLong(nanoseconds);
	if (PyErr_Occurred())
		return NULL;
	Py_RETURN_NONE;
}

PyMethodDef loop_methods[] = {
	{"wait_beside", wait_beside, METH_VARARGS,
	 "Let the next wait for requests go on while a descriptor is not readable, for at most some seconds."},
	{"is_idle", is_idle, METH_NOARGS, "Tell whether the last wait for requests was in vain."},
	{"set_spin", set_spin, METH_O, "Set for how many nanoseconds to poll for the next request; 0 for never."},
	{NULL, NULL, 0, NULL},
};
