/* What the kernel is told of an inode (struct fuse_attr), from Python's os.stat_result or from stat itself. */

#define _GNU_SOURCE
#include "_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>

#define NS 1000000000LL
#define ROOT 1
#define INODE_BITS 48 /* of a number; above them is the filesystem's (layerfs.union.node.InodeTable) */

enum field { SIZE, ATIME, MTIME, CTIME, MODE, UID, GID, RDEV, BLKSIZE, FIELDS };

static const char *const names[FIELDS] = {
	"st_size", "st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_mode", "st_uid", "st_gid", "st_rdev", "st_blksize",
};
static PyObject *interned[FIELDS];

/* Splits *time*, of any size: 64 bits of nanoseconds end in 2262, 64 bits of seconds never. -1 with an exception. */
static int set_time(PyObject *time, uint64_t *seconds, uint32_t *nanoseconds)
{
	static PyObject *ns;
	PyObject *parts;
	int overflow;
	int64_t value = PyLong_AsLongLongAndOverflow(time, &overflow);

	if (!overflow) {
		int64_t rest = value % NS;

		if (rest < 0)
			rest += NS;
		*nanoseconds = rest;
		*seconds = (value - rest) / NS;
		return 0;
	}
	if (!ns && !(ns = PyLong_FromLongLong(NS)))
		return -1;
	parts = PyNumber_Divmod(time, ns);
	if (!parts)
		return -1;
	*seconds = (uint64_t)PyLong_AsLongLong(PyTuple_GET_ITEM(parts, 0));
	*nanoseconds = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(parts, 1));
	Py_DECREF(parts);
	return PyErr_Occurred() ? -1 : 0;
}

int fill_from_told(struct fuse_attr *attr, uint64_t *node, PyObject *told)
{
	int64_t value[FIELDS];
	PyObject *inode, *st;
	unsigned long long blocks;

	memset(attr, 0, sizeof(*attr));
	if (!PyArg_ParseTuple(told, "OOIK", &inode, &st, &attr->nlink, &blocks))
		return -1;
	for (int i = 0; i < FIELDS; i++) {
		PyObject *number;
		int error = 0;

		if (!interned[i] && !(interned[i] = PyUnicode_InternFromString(names[i])))
			return -1;
		number = PyObject_GetAttr(st, interned[i]);
		if (!number)
			return -1;
		if (i == ATIME)
			error = set_time(number, &attr->atime, &attr->atimensec);
		else if (i == MTIME)
			error = set_time(number, &attr->mtime, &attr->mtimensec);
		else if (i == CTIME)
			error = set_time(number, &attr->ctime, &attr->ctimensec);
		else
			value[i] = PyLong_AsLongLong(number);
		Py_DECREF(number);
		if (error)
			return -1;
	}
	*node = PyLong_AsUnsignedLongLong(inode);
	attr->ino = shown(*node);
	attr->blocks = blocks;
	attr->size = value[SIZE];
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
		.ino = shown(inode),
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

/* Whether the name has attributes that say more of it than its stat: listxattrat(2), since Linux 6.13.
 *
 * Sets *no_capability where it is seen that there is no such attribute. */
static int may_be_marked(int directory, const char *name, const char *prefix, size_t length, int *no_capability)
{
	static const long listxattrat = 465; /* on every architecture */
	char names[512];
	long size = syscall(listxattrat, directory, name, AT_SYMLINK_NOFOLLOW, names, sizeof(names));
	int marked = size < 0 && errno != EOPNOTSUPP;

	*no_capability = size >= 0;
	for (long at = 0; at < size; at += strlen(names + at) + 1) { /* each ends with a zero byte */
		marked |= !strncmp(names + at, prefix, length);
		*no_capability &= strcmp(names + at, CAPABILITY) != 0;
	}
	return length && marked;
}

/* All of the lookup of a file that no node stands for yet, where its stat says everything. */
static PyObject *plain_entry(PyObject *self, PyObject *args)
{
	struct fuse_entry_out out = {.entry_valid = FOREVER, .attr_valid = FOREVER};
	PyObject *name, *bases, *taken, *device, *base, *inode = NULL, *entry = NULL;
	const char *prefix;
	Py_ssize_t length;
	int directory, found, no_capability = 0;
	struct stat st;

	if (!PyArg_ParseTuple(args, "iSO!O!y#", &directory, &name, &PyDict_Type, &bases, &PyDict_Type, &taken,
			      &prefix, &length))
		return NULL;
	if (fstatat(directory, PyBytes_AS_STRING(name), &st, AT_SYMLINK_NOFOLLOW))
		return PyErr_SetFromErrno(PyExc_OSError);
	if (S_ISDIR(st.st_mode) || st.st_ino >> INODE_BITS || st.st_ino <= ROOT)
		Py_RETURN_NONE;
	if ((is_capability_wanted() || length) &&
	    may_be_marked(directory, PyBytes_AS_STRING(name), prefix, length, &no_capability))
		Py_RETURN_NONE;
	device = PyLong_FromUnsignedLongLong(st.st_dev);
	base = device ? PyDict_GetItemWithError(bases, device) : NULL;
	if (base) {
		out.nodeid = PyLong_AsUnsignedLongLong(base) | st.st_ino;
		fill_from_stat(&out.attr, out.nodeid, &st);
		inode = PyLong_FromUnsignedLongLong(out.nodeid);
		found = inode ? PyDict_Contains(taken, inode) : -1;
		if (found == 0)
			drop_known(out.nodeid); /* what is known is of another that had this number */
		if (found == 0 && no_capability)
			note_no_capability(out.nodeid);
		if (found == 0)
			entry = Py_BuildValue("OIy#", inode, (unsigned int)(st.st_mode & S_IFMT), (const char *)&out,
					      (Py_ssize_t)sizeof(out));
	}
	Py_XDECREF(device);
	Py_XDECREF(inode);
	if (!entry && !PyErr_Occurred())
		Py_RETURN_NONE;
	return entry;
}

/* An entry of a listing, with what is told of it: a tuple, struct fuse_entry_out as plain_entry() has it, or None. */
static PyObject *direntplus(PyObject *self, PyObject *args)
{
	char record[FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + 255)] = {0};
	struct fuse_direntplus *plus = (void *)record;
	unsigned long long inode, cookie;
	unsigned int mode;
	const char *name;
	Py_ssize_t length;
	PyObject *told;

	if (!PyArg_ParseTuple(args, "OKKIy#", &told, &inode, &cookie, &mode, &name, &length))
		return NULL;
	if (length > 255)
		return PyErr_Format(PyExc_ValueError, "a name of %zd bytes", length);
	if (PyBytes_Check(told) && PyBytes_GET_SIZE(told) == sizeof(plus->entry_out)) {
		memcpy(&plus->entry_out, PyBytes_AS_STRING(told), sizeof(plus->entry_out));
	} else if (told != Py_None) {
		plus->entry_out.entry_valid = plus->entry_out.attr_valid = FOREVER;
		if (fill_from_told(&plus->entry_out.attr, &plus->entry_out.nodeid, told))
			return NULL;
	}
	plus->dirent = (struct fuse_dirent){
		.ino = shown(inode), .off = cookie, .namelen = length, .type = mode >> 12 & 15};
	memcpy(plus->dirent.name, name, length);
	return PyBytes_FromStringAndSize(record, FUSE_DIRENTPLUS_SIZE(plus));
}

PyMethodDef entry_methods[] = {
	{"plain_entry", plain_entry, METH_VARARGS,
	 "Return (inode, kind, struct fuse_entry_out) of a name, or None where more must be looked at."},
	{"direntplus", direntplus, METH_VARARGS,
	 "Return struct fuse_direntplus for (told or None, inode, cookie, mode, name)."},
	{NULL, NULL, 0, NULL},
};
