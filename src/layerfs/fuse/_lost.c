/* fsync(2) that does not forget: what could not be written once is never said to be on the disk later.
 *
 * The kernel tells each open file once that its pages could not be written, and takes them for written then. The
 * daemon has one open file where programs have many, and it cannot tell those apart: OPEN costs no request. So a
 * failure is kept here, for everybody who asks for that file, until it is cut to nothing or the mount ends. See
 * layerfs/fuse/lost.py, which does the same without the extension.
 */

#define _GNU_SOURCE
#include "_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* An object of a filesystem: not the next one that gets its inode number. */
struct object {
	uint32_t major, minor;
	uint64_t inode;
	int64_t born;
	uint32_t born_ns;
};

struct lost {
	struct lost *next;
	struct object object;
	int error;
};

struct sync {
	struct sync *next;
	struct object object;
	uint64_t serial;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ended = PTHREAD_COND_INITIALIZER;
static struct lost *all_lost;
static struct sync *under_way;
static uint64_t last_serial;
static int untold; /* an error that there was no memory to keep: it is everybody's */

static int identify(int file, struct object *object)
{
	struct statx found;

	if (statx(file, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO | STATX_BTIME, &found))
		return errno;
	*object = (struct object){
		.major = found.stx_dev_major,
		.minor = found.stx_dev_minor,
		.inode = found.stx_ino,
		.born = found.stx_mask & STATX_BTIME ? found.stx_btime.tv_sec : 0,
		.born_ns = found.stx_mask & STATX_BTIME ? found.stx_btime.tv_nsec : 0,
	};
	return 0;
}

static int is_same(const struct object *one, const struct object *other)
{
	return one->inode == other->inode && one->major == other->major && one->minor == other->minor &&
	       one->born == other->born && one->born_ns == other->born_ns;
}

static int error_of(const struct object *object)
{
	for (const struct lost *lost = all_lost; lost; lost = lost->next)
		if (is_same(&lost->object, object))
			return lost->error;
	return untold;
}

static void keep(const struct object *object, int error)
{
	struct lost *lost;

	if (error_of(object))
		return;
	lost = malloc(sizeof(*lost));
	if (!lost) {
		untold = error;
		return;
	}
	*lost = (struct lost){.next = all_lost, .object = *object, .error = error};
	all_lost = lost;
}

/* Whether somebody else is syncing *object* who began before *until*. */
static int is_synced_by_others(const struct object *object, uint64_t until)
{
	for (const struct sync *sync = under_way; sync; sync = sync->next)
		if (sync->serial <= until && is_same(&sync->object, object))
			return 1;
	return 0;
}

static void leave(const struct sync *self)
{
	struct sync **place = &under_way;

	while (*place != self)
		place = &(*place)->next;
	*place = self->next;
	pthread_cond_broadcast(&ended);
}

int sync_file(int file, int data_only)
{
	struct sync self = {0};
	int error = identify(file, &self.object);

	if (error)
		return error;
	pthread_mutex_lock(&lock);
	self.serial = ++last_serial;
	self.next = under_way;
	under_way = &self;
	pthread_mutex_unlock(&lock);
	error = (data_only ? fdatasync(file) : fsync(file)) ? errno : 0;
	pthread_mutex_lock(&lock);
	if (error)
		keep(&self.object, error);
	leave(&self);
	if (!error) { /* it may be one of the others whom the kernel has told */
		uint64_t until = last_serial;

		while (is_synced_by_others(&self.object, until))
			pthread_cond_wait(&ended, &lock);
		error = error_of(&self.object);
	}
	pthread_mutex_unlock(&lock);
	return error;
}

/* -- for Python --------------------------------------------------------------------------------------- */

static PyObject *py_sync(PyObject *self, PyObject *args)
{
	int file, data_only, error;

	if (!PyArg_ParseTuple(args, "ip", &file, &data_only))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	error = sync_file(file, data_only);
	Py_END_ALLOW_THREADS
	if (!error)
		Py_RETURN_NONE;
	errno = error;
	return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *has_lost(PyObject *self, PyObject *nothing)
{
	int has;

	pthread_mutex_lock(&lock);
	has = all_lost || untold;
	pthread_mutex_unlock(&lock);
	return PyBool_FromLong(has);
}

static PyObject *forgive(PyObject *self, PyObject *file)
{
	struct object object;
	struct lost **place = &all_lost;
	int fd = (int)PyLong_AsLong(file);

	if (PyErr_Occurred())
		return NULL;
	if (identify(fd, &object))
		return PyErr_SetFromErrno(PyExc_OSError);
	pthread_mutex_lock(&lock);
	while (*place && !is_same(&(*place)->object, &object))
		place = &(*place)->next;
	if (*place) {
		struct lost *lost = *place;

		*place = lost->next;
		free(lost);
	}
	pthread_mutex_unlock(&lock);
	Py_RETURN_NONE;
}

PyMethodDef lost_methods[] = {
	{"sync", py_sync, METH_VARARGS,
	 "fsync(2), or fdatasync(2), of (descriptor, data only); raises OSError, too, where one has failed before."},
	{"has_lost", has_lost, METH_NOARGS, "Tell whether a sync has failed of something that is not forgiven."},
	{"forgive", forgive, METH_O, "Forget that syncs of what a descriptor is on have failed: it was cut to nothing."},
	{NULL, NULL, 0, NULL},
};
