/* What is known of inodes: what is asked of them most is answered here, without Python.
 *
 * - A file that is whole in the upper, open to write, or a directory in the upper, is vouched for by Python, with a
 *   descriptor of which a copy is kept. That holds until the kernel forgets the inode, something is asked that changes
 *   more than times, owner, mode or contents, or a commit seals the upper: then it is revoked.
 * - The attributes of a file in a lower layer do not change, until Python says so. The kernel knows them, too, but under
 *   the writeback cache it takes the number of blocks for uncertain after every close(2), of files that were only read
 *   as well: the next fstat(2), as each start of a program makes some, asks for all attributes again.
 * - That there is no attribute `security.capability`, as its first lookup or Python has found, until some attribute
 *   is set.
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

#define PLACES 4 /* for one inode */
#define SETS 2048

struct known {
	uint64_t inode; /* 0: the place is free */
	unsigned epoch, used;
	int fd; /* -1: it is not vouched for */
	char is_file, no_capability, has_attributes;
	char late, has_shown; /* with a descriptor: the file has the time `shown` */
	union {
		struct { /* with a descriptor */
			int links; /* what to say; 0: what the object has */
			unsigned round;        /* of a late one: when it was last written to, as settle_times() counts */
			struct timespec shown; /* of a late one: the modification time that the kernel has told last */
		};
		struct fuse_attr attributes; /* without */
	};
};

static struct known *table;
static size_t room; /* in it */
static size_t most_open, open_ones; /* descriptors */
static unsigned epoch; /* of what holds; older entries wait to be forgotten or replaced */
static unsigned latest_use;
static unsigned this_round;
static PyObject *take_late; /* called with (inode, seconds, nanoseconds) */

/* The first of the places for an inode. */
static struct known *places_of(uint64_t inode)
{
	return &table[(inode * 0x9e3779b97f4a7c15u >> 40) % SETS * PLACES];
}

/* The entry of an inode, NULL where there is none that holds. */
static struct known *find(uint64_t inode)
{
	struct known *place = room ? places_of(inode) : NULL;

	for (int i = 0; place && i < PLACES; i++, place++)
		if (place->inode == inode && place->epoch == epoch) {
			place->used = ++latest_use;
			return place;
		}
	return NULL;
}

static void hand_over_time(struct known *known)
{
	PyObject *result;

	if (known->fd < 0 || !known->late)
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

/* Vouches for it no more. */
static void let_go(struct known *known)
{
	if (known->fd < 0)
		return;
	hand_over_time(known);
	close(known->fd);
	known->fd = -1;
	open_ones--;
}

static void drop(struct known *known)
{
	let_go(known);
	known->inode = 0;
}

/* What is to be kept longest: what is vouched for, then what was used last. */
static int64_t weight(const struct known *known)
{
	return (int64_t)(known->fd >= 0) << 32 | (known->used - latest_use - 1);
}

/* The entry of an inode, a new one if need be; NULL where nothing is kept. */
static struct known *enter(uint64_t inode)
{
	struct known *known = find(inode), *place = room ? places_of(inode) : NULL;

	if (known || !place)
		return known;
	known = place;
	for (int i = 0; i < PLACES; i++, place++) {
		if (!place->inode || place->epoch != epoch) {
			known = place;
			break;
		}
		if (weight(place) < weight(known))
			known = place;
	}
	if (known->inode)
		drop(known);
	*known = (struct known){.inode = inode, .epoch = epoch, .used = ++latest_use, .fd = -1};
	return known;
}

/* Makes room for one more descriptor. */
static void limit_open(void)
{
	static size_t hand;

	for (size_t i = 0; open_ones >= most_open && i < room; i++, hand = (hand + 1) % room)
		if (table[hand].inode)
			let_go(&table[hand]);
}

void drop_known(uint64_t inode)
{
	struct known *place = room ? places_of(inode) : NULL;

	for (int i = 0; place && i < PLACES; i++, place++)
		if (place->inode == inode)
			drop(place);
}

void revoke_known(uint64_t inode)
{
	struct known *known = find(inode);

	if (known)
		let_go(known);
}

int asks_for_capability(const struct fuse_in_header *in, const void *body, size_t size)
{
	return in->opcode == FUSE_GETXATTR && size == sizeof(struct fuse_getxattr_in) + sizeof(CAPABILITY) &&
	       !memcmp((const struct fuse_getxattr_in *)body + 1, CAPABILITY, sizeof(CAPABILITY));
}

void note_no_capability(uint64_t inode)
{
	struct known *known = enter(inode);

	if (known)
		known->no_capability = 1;
}

void keep_attributes(uint64_t inode, const struct fuse_attr *attributes)
{
	struct known *known = enter(inode);

	if (known && known->fd < 0) {
		known->attributes = *attributes;
		known->has_attributes = 1;
	}
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

static int is_same(struct timespec one, struct timespec other)
{
	return one.tv_sec == other.tv_sec && one.tv_nsec == other.tv_nsec;
}

/* Times, and owner or mode of a file without set-id bits: those have rules, which Python knows. */
static int answer_setattr(int device, uint64_t unique, struct known *known, const struct fuse_setattr_in *in)
{
	const uint32_t times = FATTR_ATIME | FATTR_MTIME, owner = FATTR_UID | FATTR_GID;
	const uint32_t told = FATTR_FH | FATTR_LOCKOWNER | FATTR_CTIME;
	struct stat st;
	int error = 0, comes_later = 0, is_there = 0;

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

			/* A write sets it when it ends. Until then it may hold the file's lock, and wait for a disk. */
			comes_later = is_written && !(in->valid & FATTR_ATIME) && is_everywhere(wanted[1].tv_sec);
			is_there = !is_written && !(in->valid & FATTR_ATIME) && known->is_file && known->has_shown &&
				   !known->late && is_same(known->shown, wanted[1]);
			known->late = known->late && is_written;
			known->shown = wanted[1];
			known->has_shown = !is_written;
		}
		if (!comes_later && !is_there)
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
		if (known->fd >= 0)
			return !fstat(known->fd, &st) && answer_attributes(device, in->unique, known, &st);
		if (known->has_attributes) {
			const struct fuse_attr_out out = {.attr_valid = FOREVER, .attr = known->attributes};

			return answer(device, in->unique, 0, &out, sizeof(out));
		}
		return 0;
	case FUSE_SETATTR:
		if (known->fd >= 0 && size >= sizeof(struct fuse_setattr_in) &&
		    answer_setattr(device, in->unique, known, body))
			return 1;
		let_go(known);
		return 0;
	case FUSE_GETXATTR:
		return known->no_capability && asks_for_capability(in, body, size) &&
		       answer(device, in->unique, ENODATA, NULL, 0);
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

	if (!known || known->fd < 0 || !known->is_file)
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

	if (known && known->fd >= 0) {
		known->late = 0;
		known->has_shown = 1;
	}
}

/* -- for Python --------------------------------------------------------------------------------------- */

static PyObject *know(PyObject *self, PyObject *descriptors)
{
	size_t count = PyLong_AsSize_t(descriptors);

	if (PyErr_Occurred())
		return NULL;
	if (!table && !(table = calloc(SETS * PLACES, sizeof(*table))))
		return PyErr_NoMemory();
	room = SETS * PLACES;
	most_open = count;
	Py_RETURN_NONE;
}

static PyObject *vouch(PyObject *self, PyObject *args)
{
	unsigned long long inode;
	int fd, links, is_file, no_capability;
	struct known *known;

	if (!PyArg_ParseTuple(args, "Kiipp", &inode, &fd, &links, &is_file, &no_capability))
		return NULL;
	known = most_open ? enter(inode) : NULL;
	if (!known || known->fd >= 0)
		return PyBool_FromLong(known != NULL);
	fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		Py_RETURN_FALSE;
	limit_open();
	open_ones++;
	known->fd = fd;
	known->links = links;
	known->is_file = is_file;
	known->no_capability |= no_capability;
	known->has_attributes = known->late = known->has_shown = 0;
	Py_RETURN_TRUE;
}

static PyObject *keep(PyObject *self, PyObject *told)
{
	struct fuse_attr attributes;
	uint64_t inode;

	if (fill_from_told(&attributes, &inode, told))
		return NULL;
	keep_attributes(inode, &attributes);
	Py_RETURN_NONE;
}

static PyObject *drop_attributes(PyObject *self, PyObject *inode)
{
	unsigned long long number = PyLong_AsUnsignedLongLong(inode);
	struct known *known;

	if (PyErr_Occurred())
		return NULL;
	known = find(number);
	if (known)
		known->has_attributes = 0;
	Py_RETURN_NONE;
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
			dropped += table[i].fd >= 0;
			drop(&table[i]);
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
	if (known && known->fd < 0)
		known = NULL;
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

		if (known->inode && known->fd >= 0 && known->late && known->round < last &&
		    !is_being_written(known->inode)) {
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
	{"know", know, METH_O, "Keep what is known of inodes, with at most so many descriptors."},
	{"vouch", vouch, METH_VARARGS,
	 "Vouch for an inode: (inode, descriptor, links or 0, is a file, has no capability); tell if it is known now."},
	{"keep_attributes", keep, METH_O,
	 "Answer GETATTR for an inode with (inode, stat, links, blocks) until it is dropped or forgotten."},
	{"drop_attributes", drop_attributes, METH_O, "Do so no more for an inode."},
	{"revoke_all", revoke_all, METH_NOARGS, "Take nothing for known any more: the upper is about to be sealed."},
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
