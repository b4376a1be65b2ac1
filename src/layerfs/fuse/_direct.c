/* Answering requests straight from /dev/fuse.
 *
 * Python decides, in one call of a handler (layerfs/fuse/direct.py), and the answer is written here: no
 * turn of the event loop, no task, no object of pyfuse3's. A handler that returns None leaves the request to
 * pyfuse3. Those of READ, WRITE, FALLOCATE and FSYNC return a descriptor, and the data moves without Python.
 */

#define _GNU_SOURCE
#include "_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>

#define OPCODES 64
#define SMALL_ALLOCATION (1 << 20)

static PyObject *handlers[OPCODES];
static unsigned long long counts[OPCODES];
static char *read_buffer; /* of the thread that reads requests: an answer is written before the next read */

/* Answers with the errno of the Python exception that is set. */
static int reply_exception(int device, uint64_t unique)
{
	PyObject *type, *value, *trace, *code;
	int error = EIO;

	PyErr_Fetch(&type, &value, &trace);
	PyErr_NormalizeException(&type, &value, &trace);
	if (PyErr_GivenExceptionMatches(value, PyExc_OSError)) {
		code = PyObject_GetAttrString(value, "errno");
		if (code && PyLong_Check(code))
			error = (int)PyLong_AsLong(code);
		Py_XDECREF(code);
		PyErr_Clear();
		Py_XDECREF(type);
		Py_XDECREF(value);
		Py_XDECREF(trace);
	} else { /* nobody foresaw it: it goes to the log, and must not take the mount down */
		PyErr_Restore(type, value, trace);
		PyErr_WriteUnraisable(NULL);
	}
	return answer(device, unique, error ? error : EIO, NULL, 0);
}

/* Calls the handler for an opcode; with a reference, None for "not now", or NULL with an exception. */
static PyObject *call(uint32_t opcode, PyObject **arguments, size_t count)
{
	PyObject *result = NULL;
	size_t i, made = 0;

	while (made < count && arguments[made])
		made++;
	if (made == count)
		result = PyObject_Vectorcall(handlers[opcode], arguments, count, NULL);
	for (i = 0; i < count; i++)
		Py_XDECREF(arguments[i]);
	return result;
}

static int answer_any(int device, const struct fuse_in_header *in, const char *body, size_t size)
{
	PyObject *arguments[] = {
		PyLong_FromUnsignedLongLong(in->nodeid), PyBytes_FromStringAndSize(body, size),
		PyLong_FromUnsignedLong(in->uid),        PyLong_FromUnsignedLong(in->gid),
		PyLong_FromUnsignedLong(in->pid),
	};
	PyObject *result = call(in->opcode, arguments, 5);
	int answered = 0;

	if (!result)
		return reply_exception(device, in->unique);
	if (PyBytes_Check(result))
		answered = answer(device, in->unique, 0, PyBytes_AS_STRING(result), PyBytes_GET_SIZE(result));
	else if (PyLong_Check(result))
		answered = answer(device, in->unique, (int)PyLong_AsLong(result), NULL, 0);
	Py_DECREF(result);
	return answered;
}

static void take_back(uint64_t inode, uint64_t count)
{
	PyObject *arguments[] = {PyLong_FromUnsignedLongLong(inode), PyLong_FromUnsignedLongLong(count)};
	PyObject *result;

	drop_known(inode);
	drop_unchanging(inode);
	result = call(FUSE_FORGET, arguments, 2);

	if (!result)
		PyErr_WriteUnraisable(handlers[FUSE_FORGET]);
	Py_XDECREF(result);
}

static int answer_forget(const struct fuse_in_header *in, const char *body, size_t size)
{
	if (in->opcode == FUSE_FORGET) {
		take_back(in->nodeid, ((const struct fuse_forget_in *)body)->nlookup);
	} else {
		const struct fuse_batch_forget_in *batch = (const void *)body;
		const struct fuse_forget_one *one = (const void *)(batch + 1);
		size_t fits = (size - sizeof(*batch)) / sizeof(*one);

		for (uint32_t i = 0; i < batch->count && i < fits; i++)
			take_back(one[i].nodeid, one[i].nlookup);
	}
	return 1;
}

/* The descriptor that a READ or WRITE handler returned; -1 for "not now", -2 with an exception. */
static int descriptor(PyObject *result)
{
	int fd = -2;

	if (result == Py_None)
		fd = -1;
	else if (result)
		fd = (int)PyLong_AsLong(result);
	Py_XDECREF(result);
	return fd;
}

/* tmpfs does not know RWF_NOWAIT, nor does it need it. */
static int lies_in_memory(int file)
{
	struct statfs st;

	return fstatfs(file, &st) == 0 && st.f_type == TMPFS_MAGIC;
}

static int answer_read(int device, const struct fuse_in_header *in, const struct fuse_read_in *body)
{
	PyObject *arguments[] = {PyLong_FromUnsignedLongLong(in->nodeid)};
	int file = descriptor(call(FUSE_READ, arguments, 1));
	struct stat st;
	ssize_t got;
	struct iovec to;
	uint32_t ahead;

	if (file == -2)
		return reply_exception(device, in->unique);
	if (file < 0 || body->size > LARGEST_READ)
		return 0;
	if (!read_buffer && posix_memalign((void **)&read_buffer, 4096, LARGEST_READ))
		return 0;
	to = (struct iovec){read_buffer, body->size};
	ahead = bytes_ahead(in->nodeid, body->offset, body->size);
	Py_BEGIN_ALLOW_THREADS
	got = preadv2(file, &to, 1, body->offset, RWF_NOWAIT);
	if (got < 0 && errno == EOPNOTSUPP && lies_in_memory(file))
		got = preadv(file, &to, 1, body->offset);
	if (got == (ssize_t)body->size ||
	    (got >= 0 && fstat(file, &st) == 0 && (off_t)body->offset + got >= st.st_size))
		answer(device, in->unique, 0, read_buffer, got);
	else if (!answer_read_later(device, in->unique, file, body->offset, body->size, ahead))
		got = -2;
	else
		got = 0;
	Py_END_ALLOW_THREADS
	return got != -2;
}

static int answer_sync(int device, const struct fuse_in_header *in, const struct fuse_fsync_in *body)
{
	int data_only = !!(body->fsync_flags & FUSE_FSYNC_FDATASYNC);
	PyObject *arguments[] = {PyLong_FromUnsignedLongLong(in->nodeid)};
	int file;

	if (in->opcode == FUSE_FSYNC && !data_only)
		drop_known(in->nodeid); /* its time goes to Python, which sets it: the kernel has none to tell */
	file = descriptor(call(in->opcode, arguments, 1));
	if (file == -2)
		return reply_exception(device, in->unique);
	return file >= 0 &&
	       answer_sync_later(device, in->unique, file, data_only);
}

/* The descriptor of the file that *in* is to change, which counts as written to from now on; as descriptor().
 *
 * Sets *shown*, where that is known, to the modification time that the kernel shows. */
static int file_to_change(const struct fuse_in_header *in, int takes_set_id, struct timespec *shown)
{
	int file = takes_set_id ? -1 : known_file_to_write(in->nodeid, shown);

	if (file < 0) {
		PyObject *arguments[] = {PyLong_FromUnsignedLongLong(in->nodeid), PyBool_FromLong(takes_set_id)};

		drop_known(in->nodeid);
		file = descriptor(call(in->opcode, arguments, 2));
		if (file >= 0)
			known_file_to_write(in->nodeid, shown); /* if it has been vouched for now */
	}
	return file;
}

/* Large writes are handed over, with the buffer that they came in: then *request is set to NULL. */
static int answer_write(int device, char **request, size_t size)
{
	const struct fuse_in_header *in = (void *)*request;
	const struct fuse_write_in *body = (void *)(in + 1);
	char *data = (char *)(body + 1);
	int takes_set_id = !!(body->write_flags & FUSE_WRITE_KILL_SUIDGID);
	struct fuse_write_out out = {.size = body->size};
	struct timespec shown = {.tv_nsec = UTIME_OMIT};
	struct write_time *time;
	int error, file, is_set;

	if (size < sizeof(*body) || size - sizeof(*body) < body->size)
		return 0;
	file = file_to_change(in, takes_set_id, &shown);
	if (file == -2)
		return reply_exception(device, in->unique);
	if (file < 0)
		return 0;
	if (!(body->write_flags & FUSE_WRITE_CACHE))
		shown.tv_nsec = UTIME_OMIT; /* O_DIRECT: the time of this one comes later */
	time = begin_write(in->nodeid, shown);
	if (body->size >= LARGE &&
	    answer_write_later(device, in->unique, file, body->offset, body->size, *request, data, time)) {
		*request = NULL;
		return 1;
	}
	Py_BEGIN_ALLOW_THREADS
	error = write_all(file, data, body->size, body->offset);
	is_set = end_write(time, file);
	answer(device, in->unique, error, &out, error ? 0 : sizeof(out));
	Py_END_ALLOW_THREADS
	if (is_set)
		known_time_is_set(in->nodeid);
	return 1;
}

/* A small allocation takes microseconds. Anything else may write out pages or free many blocks first. */
static int answer_fallocate(int device, const struct fuse_in_header *in, const struct fuse_fallocate_in *body)
{
	const struct timespec later = {.tv_nsec = UTIME_OMIT}; /* the kernel tells the time of this after it */
	struct timespec shown;
	struct write_time *time;
	int error, file = file_to_change(in, 0, &shown);

	if (file == -2)
		return reply_exception(device, in->unique);
	if (file < 0)
		return 0;
	time = begin_write(in->nodeid, later);
	if (body->mode & ~FALLOC_FL_KEEP_SIZE || body->length > SMALL_ALLOCATION) {
		if (answer_fallocate_later(device, in->unique, file, body->mode, body->offset, body->length, time))
			return 1;
		end_write(time, file);
		drop_known(in->nodeid); /* Python minds the file's time now */
		return 0;
	}
	Py_BEGIN_ALLOW_THREADS
	error = allocate(file, body->mode, body->offset, body->length);
	end_write(time, file);
	Py_END_ALLOW_THREADS
	return answer(device, in->unique, error, NULL, 0);
}

int answer_directly(int device, char **buffer, size_t size)
{
	const struct fuse_in_header *in = (void *)*buffer;
	const void *body = in + 1;
	size_t rest = size - sizeof(*in);
	uint32_t handler = in->opcode == FUSE_BATCH_FORGET ? FUSE_FORGET : in->opcode;
	int answered;

	if (answer_known(device, in, body, rest) || answer_unchanging(device, in)) {
		counts[in->opcode]++;
		return 1;
	}
	if (handler >= OPCODES || !handlers[handler])
		return 0;
	switch (in->opcode) {
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
		answered = answer_forget(in, body, rest);
		break;
	case FUSE_READ:
		answered = answer_read(device, in, body);
		break;
	case FUSE_WRITE:
		answered = answer_write(device, buffer, rest);
		break;
	case FUSE_FALLOCATE:
		answered = answer_fallocate(device, in, body);
		break;
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
		answered = answer_sync(device, in, body);
		break;
	default:
		answered = answer_any(device, in, body, rest);
	}
	counts[handler] += answered;
	return answered;
}

/* -- for Python --------------------------------------------------------------------------------------- */

static PyObject *set_handlers(PyObject *self, PyObject *table)
{
	PyObject *opcode, *handler;
	Py_ssize_t position = 0;

	if (!PyDict_Check(table)) {
		PyErr_SetString(PyExc_TypeError, "a dict of handlers by opcode is needed");
		return NULL;
	}
	while (PyDict_Next(table, &position, &opcode, &handler)) {
		unsigned long number = PyLong_AsUnsignedLong(opcode);

		if (PyErr_Occurred())
			return NULL;
		if (number >= OPCODES) {
			PyErr_Format(PyExc_ValueError, "no such opcode: %lu", number);
			return NULL;
		}
		Py_INCREF(handler);
		Py_XSETREF(handlers[number], handler);
	}
	Py_RETURN_NONE;
}

static PyObject *get_counts(PyObject *self, PyObject *nothing)
{
	PyObject *table = PyDict_New();

	for (unsigned long i = 0; table && i < OPCODES; i++) {
		PyObject *number, *count;

		if (!counts[i])
			continue;
		number = PyLong_FromUnsignedLong(i);
		count = PyLong_FromUnsignedLongLong(counts[i]);
		if (!number || !count || PyDict_SetItem(table, number, count))
			Py_CLEAR(table);
		Py_XDECREF(number);
		Py_XDECREF(count);
	}
	return table;
}

PyMethodDef direct_methods[] = {
	{"set_handlers", set_handlers, METH_O,
	 "Set what answers requests directly: a dict of handlers by opcode, see layerfs.fuse.direct."},
	{"counts", get_counts, METH_NOARGS, "Return how many requests were answered directly, by opcode."},
	{NULL, NULL, 0, NULL},
};
