/* Inodes that Python has vouched for: what is asked of them most is answered here, without it.
 *
 * An inode is vouched for with a descriptor, of which a copy is kept: a file that is whole in the upper, open
 * to write, or a directory in the upper. That holds until the kernel forgets the inode, something is asked
 * that changes more than times, owner, mode or contents, or a commit seals the upper: then it is revoked.
 *
 * Writes move a file's modification time on disk, while the kernel keeps the time that counts and tells it
 * later, or has told it already (see layerfs/fuse/times.py): such files are "late". Who is not vouched for any more
 * while it is late goes to Python's books.
 */

#define _GNU_SOURCE
#include "_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CAPABILITY "security.capability"

struct known {
	uint64_t inode; /* 0: the place is free */
	int fd;
	int links; /* what to say; 0: what the object has */
	int is_file, no_capability, late;
	unsigned epoch;
	unsigned round;        /* of a late one: when it was last written to, as settle_times() counts */
	struct timespec shown; /* of a late one: the modification time that the kernel has told last */
};

static struct known *table;
static size_t room;
static unsigned epoch; /* of what holds; older entries wait to be forgotten or replaced */
static unsigned this_round;
static PyObject *take_late; /* called with (inode, seconds, nanoseconds) */

static struct known *place_of(uint64_t inode)
{
	return room ? &table[(inode * 0x9e3779b97f4a7c15u >> 20) % room] : NULL;
}

static struct known *find(uint64_t inode)
{
	struct known *known = place_of(inode);

	return known && known->inode == inode && known->epoch == epoch ? known : NULL;
}

static void hand_over_time(struct known *known)
{
	PyObject *result;

	if (!known->late)
		return;
	known->late = 0;
	if (!take_late)
		return;
	result = PyObject_CallFunction(take_late, "KLl", (unsigned long long)known->inode,
				       (long long)known->shown.tv_sec, (long)known->shown.tv_nsec);
	if (!result)
		PyErr_WriteUnraisable(take_late);
	Py_XDECREF(result);
}

static void drop(struct known *known)
{
	hand_over_time(known);
	close(known->fd);
	known->inode = 0;
}

void drop_known(uint64_t inode)
{
	struct known *known = place_of(inode);

	if (known && known->inode == inode)
		drop(known);
}

static int answer_attributes(int device, uint64_t unique, const struct known *known, const struct stat *st)
{
	struct fuse_attr_out out = {.attr_valid = FOREVER};

	fill_from_stat(&out.attr, known->inode, st);
	if (st->st_nlink && known->links)
		out.attr.nlink = known->links;
	return answer(device, unique, 0, &out, sizeof(out));
}

static struct timespec chosen_time(uint32_t valid, uint32_t bit, uint64_t seconds, uint32_t nanoseconds)
{
	if (valid & bit)
		return (struct timespec){.tv_sec = seconds, .tv_nsec = nanoseconds};
	return (struct timespec){.tv_nsec = UTIME_OMIT};
}

/* Whether every filesystem holds that time: FAT begins in 1980, 32 bits end in 2038. */
static int is_everywhere(time_t seconds)
{
	return seconds >= 315532800 && seconds < 1LL << 31;
}

/* Times, and owner or mode of a file without set-id bits: those have rules, which Python knows. */
static int answer_setattr(int device, uint64_t unique, struct known *known, const struct fuse_setattr_in *in)
{
	const uint32_t times = FATTR_ATIME | FATTR_MTIME, owner = FATTR_UID | FATTR_GID;
	const uint32_t told = FATTR_FH | FATTR_LOCKOWNER | FATTR_CTIME;
	struct stat st;
	int error = 0, comes_later = 0;

	if (in->valid & ~(times | owner | FATTR_MODE | told) || !(in->valid & (times | owner | FATTR_MODE)))
		return 0;
	if (in->valid & (owner | FATTR_MODE) &&
	    (!known->is_file || fstat(known->fd, &st) || st.st_mode & (S_ISUID | S_ISGID)))
		return 0;
	if (in->valid & owner)
		error = fchown(known->fd, in->valid & FATTR_UID ? in->uid : (uid_t)-1,
			       in->valid & FATTR_GID ? in->gid : (gid_t)-1);
	if (!error && in->valid & FATTR_MODE)
		error = fchmod(known->fd, in->mode & 07777);
	if (!error && in->valid & times) {
		const struct timespec wanted[2] = {
			chosen_time(in->valid, FATTR_ATIME, in->atime, in->atimensec),
			chosen_time(in->valid, FATTR_MTIME, in->mtime, in->mtimensec),
		};

		if (in->valid & FATTR_MTIME) {
			int is_written = tell_writes(known->inode, wanted[1]);

			known->late = known->late && is_written;
			known->shown = wanted[1];
			/* The write sets it when it ends. Until then it may hold the file's lock, and wait for a disk. */
			comes_later = is_written && !(in->valid & FATTR_ATIME) && is_everywhere(wanted[1].tv_sec);
		}
		if (!comes_later)
			error = futimens(known->fd, wanted);
	}
	if (error)
		return answer(device, unique, errno, NULL, 0);
	if (fstat(known->fd, &st))
		return 0;
	if (comes_later)
		st.st_mtim = known->shown;
	if (in->valid & FATTR_MTIME && st.st_mtim.tv_sec != (time_t)in->mtime)
		return 0; /* the disk cannot hold that time: Python knows what to do */
	return answer_attributes(device, unique, known, &st);
}

int answer_known(int device, const struct fuse_in_header *in, const void *body, size_t size)
{
	struct known *known = find(in->nodeid);
	struct stat st;

	if (!known)
		return 0;
	switch (in->opcode) {
	case FUSE_GETATTR:
		return !fstat(known->fd, &st) && answer_attributes(device, in->unique, known, &st);
	case FUSE_SETATTR:
		if (size >= sizeof(struct fuse_setattr_in) && answer_setattr(device, in->unique, known, body))
			return 1;
		drop(known);
		return 0;
	case FUSE_GETXATTR:
		if (known->no_capability && size == sizeof(struct fuse_getxattr_in) + sizeof(CAPABILITY) &&
		    !memcmp((const struct fuse_getxattr_in *)body + 1, CAPABILITY, sizeof(CAPABILITY)))
			return answer(device, in->unique, ENODATA, NULL, 0);
		return 0;
	case FUSE_SETXATTR:
	case FUSE_REMOVEXATTR:
		drop(known);
	}
	return 0;
}

int known_file_to_write(uint64_t inode, struct timespec *shown)
{
	struct known *known = find(inode);
	struct stat st;

	if (!known || !known->is_file)
		return -1;
	if (!known->late) {
		if (fstat(known->fd, &st))
			return -1;
		known->shown = st.st_mtim;
		known->late = 1;
	}
	known->round = this_round;
	*shown = known->shown;
	return known->fd;
}

void known_time_is_set(uint64_t inode)
{
	struct known *known = find(inode);

	if (known)
		known->late = 0;
}

/* -- for Python --------------------------------------------------------------------------------------- */

static PyObject *set_known_room(PyObject *self, PyObject *count)
{
	size_t wanted = PyLong_AsSize_t(count);
	struct known *fresh;

	if (PyErr_Occurred())
		return NULL;
	fresh = calloc(wanted ? wanted : 1, sizeof(*fresh));
	if (!fresh)
		return PyErr_NoMemory();
	for (size_t i = 0; i < room; i++)
		if (table[i].inode)
			drop(&table[i]);
	free(table);
	table = fresh;
	room = wanted;
	Py_RETURN_NONE;
}

static PyObject *vouch(PyObject *self, PyObject *args)
{
	unsigned long long inode;
	int fd, links, is_file, no_capability;
	struct known *known;

	if (!PyArg_ParseTuple(args, "Kiipp", &inode, &fd, &links, &is_file, &no_capability))
		return NULL;
	known = place_of(inode);
	if (!known || find(inode))
		return PyBool_FromLong(known != NULL);
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		Py_RETURN_FALSE;
	if (known->inode)
		drop(known);
	*known = (struct known){
		.inode = inode,
		.fd = fd,
		.links = links,
		.is_file = is_file,
		.no_capability = no_capability,
		.epoch = epoch,
	};
	Py_RETURN_TRUE;
}

static PyObject *revoke_all(PyObject *self, PyObject *nothing)
{
	for (size_t i = 0; i < room; i++)
		if (table[i].inode)
			hand_over_time(&table[i]);
	epoch++; /* closing them all would take milliseconds, and somebody waits */
	Py_RETURN_NONE;
}

/* Closes what does not hold any more, a few at a time; tells whether there is nothing left of it. */
static PyObject *drop_lapsed(PyObject *self, PyObject *nothing)
{
	static const int most = 64; /* some 50 us */
	int dropped = 0;

	for (size_t i = 0; i < room && dropped < most; i++)
		if (table[i].inode && table[i].epoch != epoch) {
			drop(&table[i]);
			dropped++;
		}
	return PyBool_FromLong(dropped < most);
}

static PyObject *set_late(PyObject *self, PyObject *args)
{
	unsigned long long inode;
	unsigned round;
	long long seconds;
	long nanoseconds;
	struct known *known;

	if (!PyArg_ParseTuple(args, "KILl", &inode, &round, &seconds, &nanoseconds))
		return NULL;
	known = find(inode);
	if (known && !known->late) {
		known->late = 1;
		known->round = round;
		known->shown = (struct timespec){.tv_sec = seconds, .tv_nsec = nanoseconds};
	}
	return PyBool_FromLong(known != NULL);
}

static PyObject *begin_round(PyObject *self, PyObject *round)
{
	unsigned long number = PyLong_AsUnsignedLong(round);

	if (PyErr_Occurred())
		return NULL;
	this_round = number;
	Py_RETURN_NONE;
}

static PyObject *settle_times(PyObject *self, PyObject *round)
{
	unsigned long last = PyLong_AsUnsignedLong(round);

	if (PyErr_Occurred())
		return NULL;
	for (size_t i = 0; i < room; i++) {
		struct known *known = &table[i];
		const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, known->shown};

		if (known->inode && known->late && known->round < last && !is_being_written(known->inode)) {
			futimens(known->fd, times);
			known->late = 0;
		}
	}
	Py_RETURN_NONE;
}

static PyObject *set_take_late(PyObject *self, PyObject *handler)
{
	Py_INCREF(handler);
	Py_XSETREF(take_late, handler);
	Py_RETURN_NONE;
}

PyMethodDef known_methods[] = {
	{"set_known_room", set_known_room, METH_O, "Set how many inodes may be vouched for at a time."},
	{"vouch", vouch, METH_VARARGS,
	 "Vouch for an inode: (inode, descriptor, links or 0, is a file, has no capability); tell if it is known now."},
	{"revoke_all", revoke_all, METH_NOARGS, "Vouch for nothing any more: the upper is about to be sealed."},
	{"drop_lapsed", drop_lapsed, METH_NOARGS,
	 "Close some descriptors of what was vouched for before; tell whether those were the last."},
	{"set_take_late", set_take_late, METH_O,
	 "Set what is called with (inode, seconds, nanoseconds) for a late file that is not vouched for any more."},
	{"set_late", set_late, METH_VARARGS,
	 "Take over a late file that is vouched for: (inode, round, seconds, nanoseconds); tell if it is."},
	{"begin_round", begin_round, METH_O, "Count writes as of this round from now on."},
	{"settle_times", settle_times, METH_O,
	 "Set the times that the kernel has told of late files last written to before a round."},
	{NULL, NULL, 0, NULL},
};
