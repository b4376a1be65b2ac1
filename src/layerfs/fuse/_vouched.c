/* Answers about what is known of inodes (_known.c), without Python. */

#define _GNU_SOURCE
#include "_known.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

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
		if (error)
			known->has_shown = 0;
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
	struct known *known = find_known(in->nodeid);
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
		drop_known(in->nodeid);
	}
	return 0;
}
