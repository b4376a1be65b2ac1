/* The modification time of a file while writes to it are under way.
 *
 * A write moves the time on disk to the moment at which the daemon does it. The kernel keeps the time that counts
 * and tells it in a SETATTR (see layerfs/fuse/times.py), which may be answered while a thread still writes what the
 * kernel had sent before. Such a write sets the time once more when it ends: the kernel waits for its answer, so
 * close(2) and umount(2) find the time on disk.
 */

#define _GNU_SOURCE
#include "_wire.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#define NS 1000000000LL
#define MOMENT 16000000 /* nanoseconds: some clock ticks */

struct write_time {
	struct write_time *next;
	uint64_t inode;
	struct timespec shown; /* what the kernel shows for the file; UTIME_OMIT: not known */
	int told;              /* the kernel has told it since the write began, and no other write has begun */
	int is_disturbed;      /* another write has ended since: it may have moved the time after this one set it */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct write_time *under_way;

struct write_time *begin_write(uint64_t inode, struct timespec shown)
{
	struct write_time *write = malloc(sizeof(*write));

	pthread_mutex_lock(&lock);
	for (struct write_time *other = under_way; other; other = other->next)
		if (other->inode == inode)
			other->told = 0; /* that was not the time of this write */
	if (write) {
		*write = (struct write_time){.next = under_way, .inode = inode, .shown = shown};
		under_way = write;
	}
	pthread_mutex_unlock(&lock);
	return write;
}

/* Whether *time* is that of now, give or take the few clock ticks by which times of files lag behind.
 *
 * What close(2) sends of a file that was made and written to in one tick comes with no time to tell: that of the
 * file is right already. Any other write of that moment is a few ticks off until the kernel tells its time. */
static int is_of_now(struct timespec time)
{
	struct timespec present;
	int64_t age;

	if (time.tv_nsec == UTIME_OMIT || clock_gettime(CLOCK_REALTIME, &present) ||
	    labs(present.tv_sec - time.tv_sec) > 1)
		return 0;
	age = (present.tv_sec - time.tv_sec) * NS + present.tv_nsec - time.tv_nsec;
	return age >= 0 && age < MOMENT;
}

/* Has the file have the time that the kernel shows, where that is to be; again if it tells another one meanwhile:
 * whoever answers that has set the new time already, and this would have set the old one after it. Holds the lock,
 * but not while the disk is waited for. Returns whether the time is set. */
static int set_time(const struct write_time *write, int file)
{
	struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}};
	int set;

	do {
		times[1] = write->shown;
		set = write->told || is_of_now(write->shown);
		if (!set)
			return 0;
		pthread_mutex_unlock(&lock);
		set = !futimens(file, times);
		pthread_mutex_lock(&lock);
	} while (times[1].tv_sec != write->shown.tv_sec || times[1].tv_nsec != write->shown.tv_nsec);
	return set;
}

int end_write(struct write_time *write, int file)
{
	struct write_time **place = &under_way;
	int set, others = 0;

	if (!write)
		return 0;
	pthread_mutex_lock(&lock);
	set = set_time(write, file);
	while (*place != write)
		place = &(*place)->next;
	*place = write->next;
	for (struct write_time *other = under_way; other; other = other->next)
		if (other->inode == write->inode)
			others = other->is_disturbed = 1;
	set = set && !others && !write->is_disturbed;
	pthread_mutex_unlock(&lock);
	free(write);
	return set;
}

int tell_writes(uint64_t inode, struct timespec time)
{
	int some = 0;

	pthread_mutex_lock(&lock);
	for (struct write_time *write = under_way; write; write = write->next)
		if (write->inode == inode) {
			write->shown = time;
			write->told = some = 1;
		}
	pthread_mutex_unlock(&lock);
	return some;
}

int is_being_written(uint64_t inode)
{
	int some = 0;

	pthread_mutex_lock(&lock);
	for (struct write_time *write = under_way; write; write = write->next)
		some |= write->inode == inode;
	pthread_mutex_unlock(&lock);
	return some;
}

/* -- for Python --------------------------------------------------------------------------------------- */

static PyObject *py_tell_writes(PyObject *self, PyObject *args)
{
	unsigned long long inode;
	long long seconds;
	long nanoseconds;

	if (!PyArg_ParseTuple(args, "KLl", &inode, &seconds, &nanoseconds))
		return NULL;
	return PyBool_FromLong(
		tell_writes(inode, (struct timespec){.tv_sec = seconds, .tv_nsec = nanoseconds}));
}

PyMethodDef times_methods[] = {
	{"tell_writes", py_tell_writes, METH_VARARGS,
	 "Have the writes to an inode that are under way set this time (seconds, nanoseconds); tell if there are any."},
	{NULL, NULL, 0, NULL},
};
