/* The table of requests, as layerfs/fuse/requests.py has it: what is asked of Python, and how its answer is written.
 *
 * A handler is called with the inode and what its row says of the body. It returns the answer, an errno, or a
 * coroutine where the answer has to wait for something: that runs in a task of its own, and answers later. So most
 * requests take no turn of the event loop, no task, no object of pyfuse3's. What is not in the table goes to pyfuse3.
 */

#define _GNU_SOURCE
#include "_wire.h"

#include <errno.h>
#include <string.h>
#include <sys/sysmacros.h>

#define OPCODES 64
#define MOST_ARGUMENTS 12
#define LONGEST_FORM 15

static struct row {
	PyObject *handler;             /* NULL: pyfuse3 is to answer */
	PyObject *descriptor;          /* returns that by which it can be done without the handler; NULL: none does */
	char form[LONGEST_FORM + 1];   /* of what follows the header */
	int error;                     /* the answer, whatever is asked; 0: the handler knows */
	unsigned long long count;      /* of those answered here */
} rows[OPCODES];
static PyObject *make_caller; /* called with (uid, gid, pid) */
static PyObject *begin_later; /* called with (request, coroutine): see answer_later() */
static int session_device = -1;

void answer_by_pyfuse3(uint32_t opcode)
{
	rows[opcode].error = 0;
}

/* The errno of the Python exception that is set, which is cleared. */
static int error_of_exception(void)
{
	PyObject *type, *value, *trace, *code;
	int error = EIO;

	PyErr_Fetch(&type, &value, &trace);
	PyErr_NormalizeException(&type, &value, &trace);
	if (!PyErr_GivenExceptionMatches(value, PyExc_OSError)) {
		PyErr_Restore(type, value, trace); /* nobody foresaw it: it must not take the mount down */
		PyErr_WriteUnraisable(NULL);
		return EIO;
	}
	code = PyObject_GetAttrString(value, "errno");
	if (code && PyLong_Check(code))
		error = (int)PyLong_AsLong(code);
	Py_XDECREF(code);
	PyErr_Clear();
	Py_XDECREF(type);
	Py_XDECREF(value);
	Py_XDECREF(trace);
	return error ? error : EIO;
}

/* The next argument for a handler, as *form* says (see layerfs.fuse.requests.Row); NULL with an exception. */
static PyObject *take(char form, const struct fuse_in_header *in, const char **body, size_t *size)
{
	const char *here = *body;
	size_t length = form == 'Q' ? 8 : form == 's' ? strnlen(here, *size) : form == 'b' ? *size : form == 'c' ? 0 : 4;
	size_t taken = length + (form == 's');
	uint32_t number;
	uint64_t large;

	if (taken > *size)
		return PyErr_Format(PyExc_ValueError, "a request %u that is cut short", in->opcode);
	*body += taken;
	*size -= taken;
	switch (form) {
	case 'I':
		memcpy(&number, here, sizeof(number));
		return PyLong_FromUnsignedLong(number);
	case 'd': /* new_encode_dev() in the kernel's linux/kdev_t.h */
		memcpy(&number, here, sizeof(number));
		return PyLong_FromUnsignedLongLong(
			makedev(number >> 8 & 0xfff, (number & 0xff) | (number >> 12 & 0xfff00)));
	case 'Q':
		memcpy(&large, here, sizeof(large));
		return PyLong_FromUnsignedLongLong(large);
	case 'c':
		return PyObject_CallFunction(make_caller, "III", in->uid, in->gid, in->pid);
	default:
		return PyBytes_FromStringAndSize(here, length);
	}
}

static PyObject *call(const struct row *row, const struct fuse_in_header *in, const char *body, size_t size)
{
	PyObject *arguments[MOST_ARGUMENTS] = {PyLong_FromUnsignedLongLong(in->nodeid)}, *result = NULL;
	const char *form = row->form;
	size_t count = 0;

	while (arguments[count]) {
		count++;
		for (; *form == '.' && size >= 4; form++, size -= 4)
			body += 4;
		if (!*form) {
			result = PyObject_Vectorcall(row->handler, arguments, count, NULL);
			break;
		}
		arguments[count] = take(*form++, in, &body, &size);
	}
	while (count)
		Py_DECREF(arguments[--count]);
	return result;
}

int ask(const struct fuse_in_header *in, int flag, int *error)
{
	PyObject *inode = PyLong_FromUnsignedLongLong(in->nodeid), *result = NULL;
	PyObject *arguments[] = {inode, flag ? Py_True : Py_False};
	int fd = -1;

	*error = 0;
	if (inode)
		result = PyObject_Vectorcall(rows[in->opcode].descriptor, arguments, 2, NULL);
	if (result && result != Py_None)
		fd = (int)PyLong_AsLong(result);
	if (PyErr_Occurred())
		*error = error_of_exception();
	Py_XDECREF(inode);
	Py_XDECREF(result);
	return fd;
}

/* Answers with the value of an attribute, or its length where the caller gave no room and asks for that. */
static void write_value(int device, uint64_t unique, const Py_buffer *value, size_t room)
{
	const struct fuse_getxattr_out out = {.size = value->len};

	if (!room)
		answer(device, unique, 0, &out, sizeof(out));
	else if ((size_t)value->len > room)
		answer(device, unique, ERANGE, NULL, 0);
	else
		answer(device, unique, 0, value->buf, value->len);
}

/* Answers with (inode, stat, links, blocks). */
static void write_node(int device, const struct fuse_in_header *in, PyObject *told)
{
	const int is_entry = in->opcode != FUSE_GETATTR && in->opcode != FUSE_SETATTR;
	struct fuse_entry_out entry = {.entry_valid = FOREVER, .attr_valid = FOREVER};
	struct fuse_attr_out out = {.attr_valid = FOREVER};

	if (fill_from_told(is_entry ? &entry.attr : &out.attr, &entry.nodeid, told))
		answer(device, in->unique, error_of_exception(), NULL, 0);
	else if (is_entry)
		answer(device, in->unique, 0, &entry, sizeof(entry));
	else
		answer(device, in->unique, 0, &out, sizeof(out));
}

/* Answers with what a handler has returned, an exception where that is NULL; what follows the header is needed
 * for attributes only. */
static void write_result(int device, const struct fuse_in_header *in, const void *body, size_t size, PyObject *result)
{
	const int is_value = in->opcode == FUSE_GETXATTR || in->opcode == FUSE_LISTXATTR;
	Py_buffer buffer;
	int error;

	if (in->opcode == FUSE_SETXATTR)
		drop_known(in->nodeid); /* what was found while it waited for a copy-up */
	if (result && PyTuple_Check(result)) {
		write_node(device, in, result);
		return;
	}
	if (result && !PyLong_Check(result) && result != Py_None && !PyObject_GetBuffer(result, &buffer, PyBUF_SIMPLE)) {
		if (is_value && size >= sizeof(struct fuse_getxattr_in))
			write_value(device, in->unique, &buffer, ((const struct fuse_getxattr_in *)body)->size);
		else
			answer(device, in->unique, 0, buffer.buf, buffer.len);
		PyBuffer_Release(&buffer);
		return;
	}
	error = result && PyLong_Check(result) ? (int)PyLong_AsLong(result) : 0;
	if (PyErr_Occurred())
		error = error_of_exception();
	if (error == ENODATA && asks_for_capability(in, body, size))
		note_no_capability(in->nodeid);
	answer(device, in->unique, error, NULL, 0);
}

/* Has the event loop answer, by answer_later(). */
static void begin(int device, const struct fuse_in_header *in, PyObject *coroutine)
{
	PyObject *begun = PyObject_CallFunction(begin_later, "y#O", (const char *)in, (Py_ssize_t)sizeof(*in), coroutine);

	if (!begun)
		answer(device, in->unique, error_of_exception(), NULL, 0);
	Py_XDECREF(begun);
	give_turn();
}

static void take_back(uint64_t inode, uint64_t count)
{
	PyObject *result;

	drop_known(inode);
	result = PyObject_CallFunction(rows[FUSE_FORGET].handler, "KK", (unsigned long long)inode,
				       (unsigned long long)count);
	if (!result)
		PyErr_WriteUnraisable(rows[FUSE_FORGET].handler);
	Py_XDECREF(result);
}

static void forget(const struct fuse_in_header *in, const void *body, size_t size)
{
	const struct fuse_batch_forget_in *batch = body;
	const struct fuse_forget_one *one = (const void *)(batch + 1);

	if (in->opcode == FUSE_FORGET) {
		take_back(in->nodeid, ((const struct fuse_forget_in *)body)->nlookup);
		return;
	}
	for (size_t i = 0; i < batch->count && i < (size - sizeof(*batch)) / sizeof(*one); i++)
		take_back(one[i].nodeid, one[i].nlookup);
}

int answer_directly(int device, char **buffer, size_t size)
{
	const struct fuse_in_header *in = (void *)*buffer;
	const char *body = (const char *)(in + 1);
	size_t rest = size - sizeof(*in);
	struct row *row = &rows[in->opcode < OPCODES ? in->opcode : 0];
	PyObject *result;

	if (!row->handler && !row->error)
		return 0;
	session_device = device;
	row->count++;
	if (row->error)
		return answer(device, in->unique, row->error, NULL, 0);
	if (in->opcode == FUSE_FORGET || in->opcode == FUSE_BATCH_FORGET) {
		forget(in, body, rest);
		return 1;
	}
	if (answer_known(device, in, body, rest) || (row->descriptor && move_data(device, buffer, size)))
		return 1;
	result = call(row, in, body, rest);
	if (result && PyCoro_CheckExact(result))
		begin(device, in, result);
	else
		write_result(device, in, body, rest, result);
	Py_XDECREF(result);
	return 1;
}

/* -- for Python --------------------------------------------------------------------------------------- */

static PyObject *set_row(PyObject *self, PyObject *args)
{
	PyObject *handler, *descriptor;
	unsigned int opcode;
	const char *form;

	if (!PyArg_ParseTuple(args, "IsOO", &opcode, &form, &handler, &descriptor))
		return NULL;
	if (opcode >= OPCODES || strlen(form) > LONGEST_FORM)
		return PyErr_Format(PyExc_ValueError, "no such request: %u, %s", opcode, form);
	strcpy(rows[opcode].form, form);
	rows[opcode].error = PyLong_Check(handler) ? (int)PyLong_AsLong(handler) : 0;
	Py_XSETREF(rows[opcode].handler, PyLong_Check(handler) ? NULL : Py_NewRef(handler));
	Py_XSETREF(rows[opcode].descriptor, descriptor == Py_None ? NULL : Py_NewRef(descriptor));
	Py_RETURN_NONE;
}

static PyObject *set_ways(PyObject *self, PyObject *args)
{
	PyObject *caller, *later;

	if (!PyArg_ParseTuple(args, "OO", &caller, &later))
		return NULL;
	Py_XSETREF(make_caller, Py_NewRef(caller));
	Py_XSETREF(begin_later, Py_NewRef(later));
	Py_RETURN_NONE;
}

static PyObject *answer_later(PyObject *self, PyObject *args)
{
	struct fuse_in_header in;
	Py_buffer request;
	PyObject *result;

	if (!PyArg_ParseTuple(args, "y*O", &request, &result))
		return NULL;
	if (request.len == sizeof(in)) {
		memcpy(&in, request.buf, sizeof(in));
		write_result(session_device, &in, NULL, 0, result);
	}
	PyBuffer_Release(&request);
	Py_RETURN_NONE;
}

static PyObject *get_counts(PyObject *self, PyObject *nothing)
{
	PyObject *counts = PyList_New(OPCODES);

	for (Py_ssize_t i = 0; counts && i < OPCODES; i++) {
		PyObject *count = PyLong_FromUnsignedLongLong(rows[i].count);

		if (count)
			PyList_SET_ITEM(counts, i, count);
		else
			Py_CLEAR(counts);
	}
	return counts;
}

PyMethodDef direct_methods[] = {
	{"set_row", set_row, METH_VARARGS, "Set what answers a request: (opcode, form, handler or errno, descriptor or None)."},
	{"set_ways", set_ways, METH_VARARGS,
	 "Set what makes a caller of (uid, gid, pid), and what is called with (request, coroutine) to answer later."},
	{"answer", answer_later, METH_VARARGS, "Answer a request (as given to begin it) with what a handler may return."},
	{"counts", get_counts, METH_NOARGS, "Return how many requests were answered through the table, by opcode."},
	{NULL, NULL, 0, NULL},
};
