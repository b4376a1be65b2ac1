/* What the kernel is told of an inode, made from Python's os.stat_result (struct fuse_attr). */

#define _GNU_SOURCE
#include "_wire.h"

#include <string.h>

#define NS 1000000000LL

enum field { SIZE, ATIME, MTIME, CTIME, MODE, UID, GID, RDEV, BLKSIZE, FIELDS };

static const char *const names[FIELDS] = {
	"st_size", "st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_mode", "st_uid", "st_gid", "st_rdev", "st_blksize",
};
static PyObject *interned[FIELDS];

static int set_time(int64_t time, uint64_t *seconds, uint32_t *nanoseconds)
{
	int64_t rest = time % NS;

	if (rest < 0)
		rest += NS;
	*nanoseconds = rest;
	*seconds = (time - rest) / NS;
	return 0;
}

/* Fills *attr* from (inode, stat, links, blocks); -1 with an exception. */
static int fill(struct fuse_attr *attr, PyObject *const *arguments, Py_ssize_t count)
{
	int64_t value[FIELDS];

	if (count != 4) {
		PyErr_SetString(PyExc_TypeError, "inode, stat, links and blocks are needed");
		return -1;
	}
	for (int i = 0; i < FIELDS; i++) {
		PyObject *number;

		if (!interned[i] && !(interned[i] = PyUnicode_InternFromString(names[i])))
			return -1;
		number = PyObject_GetAttr(arguments[1], interned[i]);
		if (!number)
			return -1;
		value[i] = PyLong_AsLongLong(number);
		Py_DECREF(number);
	}
	memset(attr, 0, sizeof(*attr));
	attr->ino = PyLong_AsUnsignedLongLong(arguments[0]);
	attr->nlink = PyLong_AsLong(arguments[2]);
	attr->blocks = PyLong_AsLongLong(arguments[3]);
	attr->size = value[SIZE];
	set_time(value[ATIME], &attr->atime, &attr->atimensec);
	set_time(value[MTIME], &attr->mtime, &attr->mtimensec);
	set_time(value[CTIME], &attr->ctime, &attr->ctimensec);
	attr->mode = value[MODE];
	attr->uid = value[UID];
	attr->gid = value[GID];
	/* the kernel's 32-bit form of a device number is what glibc's has in its low bits */
	attr->rdev = value[RDEV];
	attr->blksize = value[BLKSIZE];
	return PyErr_Occurred() ? -1 : 0;
}

void fill_from_stat(struct fuse_attr *attr, uint64_t inode, const struct stat *st)
{
	*attr = (struct fuse_attr){
		.ino = inode,
		.size = st->st_size,
		.blocks = st->st_blocks,
		.atime = st->st_atim.tv_sec,
		.mtime = st->st_mtim.tv_sec,
		.ctime = st->st_ctim.tv_sec,
		.atimensec = st->st_atim.tv_nsec,
		.mtimensec = st->st_mtim.tv_nsec,
		.ctimensec = st->st_ctim.tv_nsec,
		.mode = st->st_mode,
		.nlink = st->st_nlink,
		.uid = st->st_uid,
		.gid = st->st_gid,
		.rdev = st->st_rdev,
		.blksize = st->st_blksize,
	};
}

static PyObject *entry_out(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
	struct fuse_entry_out out = {.entry_valid = FOREVER, .attr_valid = FOREVER};

	if (fill(&out.attr, arguments, count))
		return NULL;
	out.nodeid = out.attr.ino;
	return PyBytes_FromStringAndSize((const char *)&out, sizeof(out));
}

static PyObject *attr_out(PyObject *self, PyObject *const *arguments, Py_ssize_t count)
{
	struct fuse_attr_out out = {.attr_valid = FOREVER};

	if (fill(&out.attr, arguments, count))
		return NULL;
	return PyBytes_FromStringAndSize((const char *)&out, sizeof(out));
}

PyMethodDef entry_methods[] = {
	{"entry_out", (PyCFunction)(void (*)(void))entry_out, METH_FASTCALL,
	 "Return struct fuse_entry_out for (inode, stat, links, blocks)."},
	{"attr_out", (PyCFunction)(void (*)(void))attr_out, METH_FASTCALL,
	 "Return struct fuse_attr_out for (inode, stat, links, blocks)."},
	{NULL, NULL, 0, NULL},
};
