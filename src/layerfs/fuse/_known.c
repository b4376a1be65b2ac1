/* What is known of inodes: what is asked of them most is answered without Python, see _vouched.c.
 *
 * - A file that is whole in the upper, open to write, or a directory in the upper, is vouched for by Python, with a
 *   descriptor of which a copy is kept. That holds until the kernel forgets the inode, something is asked that changes
 *   more than times, owner, mode or contents, or a commit seals the upper: then it is revoked.
 * - The attributes of a file in a lower layer do not change, until Python says so. The kernel knows them, too, but under
 *   the writeback cache it takes the number of blocks for uncertain after every close(2), of files that were only read
 *   as well: the next fstat(2), as each start of a program makes some, asks for all attributes again.
 * - That there is no attribute `security.capability`, as Python has found, or the first lookup where that is asked for
 *   of one file after the other, until some attribute is set.
 *
 * Writes move a file's modification time on disk, while the kernel keeps the time that counts and tells it
 * later, or has told it already (see layerfs/fuse/times.py): such files are "late". Who is not vouched for any more
 * while it is late goes to Python's books.
 */

#define _GNU_SOURCE
#include "_known.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PLACES 4 /* for one inode */
#define SETS 2048
#define LATELY 1024 /* lookups ago */

static struct known *table;
static size_t room; /* in it */
static size_t most_open, open_ones; /* descriptors */
static unsigned epoch; /* of what holds; older entries wait to be forgotten or replaced */
static unsigned latest_use;
static unsigned wanted; /* for so many lookups more it is found out whether there is a capability */
static unsigned this_round;
static PyObject *take_late; /* called with (inode, seconds, nanoseconds) */

/* The first of the places for an inode. */
static struct known *places_of(uint64_t inode)
{
	return &table[(inode * 0x9e3779b97f4a7c15u >> 40) % SETS * PLACES];
}

struct known *find_known(uint64_t inode)
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

void let_go(struct known *known)
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
	struct known *known = find_known(inode), *place = room ? places_of(inode) : NULL;

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
	struct known *known = find_known(inode);

	if (known)
		let_go(known);
}

int asks_for_capability(const struct fuse_in_header *in, const void *body, size_t size)
{
	if (in->opcode != FUSE_GETXATTR || size != sizeof(struct fuse_getxattr_in) + sizeof(CAPABILITY) ||
	    memcmp((const struct fuse_getxattr_in *)body + 1, CAPABILITY, sizeof(CAPABILITY)))
		return 0;
	wanted = LATELY;
	return 1;
}

int is_capability_wanted(void)
{
	return wanted && wanted--;
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

int known_file_to_write(uint64_t inode, struct timespec *shown)
{
	struct known *known = find_known(inode);
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
	struct known *known = find_known(inode);

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
	known = find_known(number);
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
	known = find_known(inode);
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
