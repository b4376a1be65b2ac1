/* The attributes of files in lower layers, which do not change.
 *
 * The kernel knows them, too, but under the writeback cache it takes the number of blocks for uncertain after
 * every close(2), of files that were only read as well: the next fstat(2), as each start of a program makes some,
 * asks for all attributes again. The answer is kept here until Python says that it does not hold any more, or the
 * kernel forgets the inode.
 */

#define _GNU_SOURCE
#include "_wire.h"

#include <stdlib.h>
#include <string.h>

#define ROOM 4096 /* a place for each number modulo this: the later one of two has it */

struct kept {
	uint64_t inode; /* 0: the place is free */
	struct fuse_attr_out answer;
};

static struct kept *table;

static struct kept *place_of(uint64_t inode)
{
	return &table[inode % ROOM];
}

int answer_unchanging(int device, const struct fuse_in_header *in)
{
	if (in->opcode != FUSE_GETATTR || !table || place_of(in->nodeid)->inode != in->nodeid)
		return 0;
	return answer(device, in->unique, 0, &place_of(in->nodeid)->answer, sizeof(struct fuse_attr_out));
}

void drop_unchanging(uint64_t inode)
{
	if (table && place_of(inode)->inode == inode)
		place_of(inode)->inode = 0;
}

/* -- for Python --------------------------------------------------------------------------------------- */

static PyObject *keep(PyObject *self, PyObject *args)
{
	unsigned long long inode;
	Py_buffer answer;

	if (!PyArg_ParseTuple(args, "Ky*", &inode, &answer))
		return NULL;
	if (!table)
		table = calloc(ROOM, sizeof(*table));
	if (table && answer.len == sizeof(struct fuse_attr_out)) {
		place_of(inode)->inode = inode;
		memcpy(&place_of(inode)->answer, answer.buf, answer.len);
	}
	PyBuffer_Release(&answer);
	Py_RETURN_NONE;
}

static PyObject *drop(PyObject *self, PyObject *inode)
{
	unsigned long long number = PyLong_AsUnsignedLongLong(inode);

	if (PyErr_Occurred())
		return NULL;
	drop_unchanging(number);
	Py_RETURN_NONE;
}

static PyObject *drop_all(PyObject *self, PyObject *nothing)
{
	for (size_t i = 0; table && i < ROOM; i++)
		table[i].inode = 0;
	Py_RETURN_NONE;
}

PyMethodDef unchanging_methods[] = {
	{"keep_attributes", keep, METH_VARARGS,
	 "Answer GETATTR for an inode with this (struct fuse_attr_out) until it is dropped or forgotten."},
	{"drop_attributes", drop, METH_O, "Do so no more for an inode."},
	{"drop_all_attributes", drop_all, METH_NOARGS, "Do so no more for any inode."},
	{NULL, NULL, 0, NULL},
};
