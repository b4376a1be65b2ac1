/* Moving data: reads, writes, fallocate and fsync by a descriptor that Python has named, here or in a thread. */

#define _GNU_SOURCE
#include "_wire.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/statfs.h>
#include <unistd.h>

#define LARGE (1 << 16)      /* bytes to write at once */
#define LARGE_READ (1 << 17) /* to read */
#define LARGEST_READ (1 << 20)
#define SMALL_ALLOCATION (1 << 20)
#define MOST_TRIES 3

static char *read_buffer; /* of the thread that reads requests: an answer is written before the next read */

/* Reads up to *size* bytes, fewer only at the end of the file; returns 0 or an errno.
 *
 * The kernel fills a short answer with zeros. So one is given only where the file ends, and what was read before
 * an error is not. That the file is longer by now than what was read is no error if it has just grown. */
static int read_all(const struct job *job, char *buffer, size_t *done)
{
	int tries = 0;

	*done = 0;
	while (*done < job->length) {
		ssize_t got = pread(job->file, buffer + *done, job->length - *done, job->offset + *done);
		struct stat st;

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return errno;
		*done += got;
		if (got)
			continue;
		if (fstat(job->file, &st))
			return errno;
		if (st.st_size <= (off_t)(job->offset + *done))
			return 0;
		if (++tries == MOST_TRIES)
			return EIO;
	}
	return 0;
}

static int write_all(const struct job *job)
{
	size_t done = 0;

	while (done < job->length) { /* after a short write the next one says why */
		ssize_t wrote = pwrite(job->file, job->data + done, job->length - done, job->offset + done);

		if (wrote < 0 && errno == EINTR)
			continue;
		if (wrote <= 0)
			return wrote < 0 ? errno : EIO;
		done += wrote;
	}
	return 0;
}

static int allocate(const struct job *job)
{
	while (fallocate(job->file, job->flags, job->offset, job->length))
		if (errno != EINTR)
			return errno;
	return 0;
}

void do_job(const struct job *job, char **buffer, struct outcome *outcome)
{
	*outcome = (struct outcome){.error = ENOMEM};
	switch (job->opcode) {
	case FUSE_READ:
		if (!*buffer)
			*buffer = malloc(LARGEST_READ);
		if (job->length >= LARGE_READ)
			readahead(job->file, job->offset, job->length + job->ahead);
		if (*buffer)
			outcome->error = read_all(job, *buffer, &outcome->size);
		outcome->payload = *buffer;
		break;
	case FUSE_WRITE:
		outcome->error = write_all(job);
		outcome->written.size = job->length;
		outcome->payload = &outcome->written;
		outcome->size = sizeof(outcome->written);
		break;
	case FUSE_FALLOCATE:
		outcome->error = allocate(job);
		break;
	default:
		outcome->error = sync_file(job->file, job->flags);
	}
	if (changes_data(job))
		outcome->time_is_set = end_write(job->time, job->file);
}

void answer_job(const struct job *job, const struct outcome *outcome)
{
	answer(job->device, job->unique, outcome->error, outcome->payload, outcome->error ? 0 : outcome->size);
}

/* tmpfs does not know RWF_NOWAIT, nor does it need it. */
static int lies_in_memory(int file)
{
	struct statfs st;

	return fstatfs(file, &st) == 0 && st.f_type == TMPFS_MAGIC;
}

static int move_read(struct job job, const struct fuse_in_header *in, const struct fuse_read_in *body)
{
	struct iovec to;
	struct stat st;
	ssize_t got;
	int done, error;

	job.file = ask(in, 0, &error);
	if (job.file < 0)
		return error && answer(job.device, job.unique, error, NULL, 0);
	if (body->size > LARGEST_READ || (!read_buffer && posix_memalign((void **)&read_buffer, 4096, LARGEST_READ)))
		return 0;
	to = (struct iovec){read_buffer, body->size};
	job.offset = body->offset;
	job.length = body->size;
	job.ahead = bytes_ahead(in->nodeid, body->offset, body->size);
	Py_BEGIN_ALLOW_THREADS
	got = preadv2(job.file, &to, 1, body->offset, RWF_NOWAIT);
	if (got < 0 && errno == EOPNOTSUPP && lies_in_memory(job.file))
		got = preadv(job.file, &to, 1, body->offset);
	done = got == (ssize_t)body->size ||
	       (got >= 0 && fstat(job.file, &st) == 0 && (off_t)body->offset + got >= st.st_size);
	if (done)
		answer(job.device, job.unique, 0, read_buffer, got);
	else
		done = hand_over(job);
	Py_END_ALLOW_THREADS
	return done;
}

/* The descriptor of the file that *in* is to change, which counts as written to from now on; as ask().
 *
 * Sets *shown*, where that is known, to the modification time that the kernel shows. */
static int file_to_change(const struct fuse_in_header *in, int takes_set_id, struct timespec *shown, int *error)
{
	int file = takes_set_id ? -1 : known_file_to_write(in->nodeid, shown);

	*error = 0;
	if (file < 0) {
		revoke_known(in->nodeid);
		file = ask(in, takes_set_id, error);
		if (file >= 0)
			known_file_to_write(in->nodeid, shown); /* if it has been vouched for now */
	}
	return file;
}

static void change_here(const struct job *job, uint64_t inode)
{
	struct outcome outcome;

	Py_BEGIN_ALLOW_THREADS
	do_job(job, NULL, &outcome);
	answer_job(job, &outcome);
	Py_END_ALLOW_THREADS
	if (outcome.time_is_set && job->opcode == FUSE_WRITE)
		known_time_is_set(inode);
}

/* Large writes are handed over, with the buffer that they came in: then *request is set to NULL. */
static int move_write(struct job job, char **request, const struct fuse_write_in *body, size_t size)
{
	const struct fuse_in_header *in = (void *)*request;
	struct timespec shown = {.tv_nsec = UTIME_OMIT};
	int error;

	if (size - sizeof(*body) < body->size)
		return 0;
	job.file = file_to_change(in, !!(body->write_flags & FUSE_WRITE_KILL_SUIDGID), &shown, &error);
	if (job.file < 0)
		return error && answer(job.device, job.unique, error, NULL, 0);
	if (!(body->write_flags & FUSE_WRITE_CACHE))
		shown.tv_nsec = UTIME_OMIT; /* O_DIRECT: the time of this one comes later */
	job.offset = body->offset;
	job.length = body->size;
	job.data = (const char *)(body + 1);
	job.time = begin_write(in->nodeid, shown);
	job.request = *request;
	if (body->size >= LARGE && hand_over(job))
		*request = NULL;
	else
		change_here(&job, in->nodeid);
	return 1;
}

/* A small allocation takes microseconds. Anything else may write out pages or free many blocks first. */
static int move_fallocate(struct job job, const struct fuse_in_header *in, const struct fuse_fallocate_in *body)
{
	const struct timespec later = {.tv_nsec = UTIME_OMIT}; /* the kernel tells the time of this after it */
	struct timespec shown;
	int error;

	job.file = file_to_change(in, 0, &shown, &error);
	if (job.file < 0)
		return error && answer(job.device, job.unique, error, NULL, 0);
	job.offset = body->offset;
	job.length = body->length;
	job.flags = body->mode;
	job.time = begin_write(in->nodeid, later);
	if (!(body->mode & ~FALLOC_FL_KEEP_SIZE) && body->length <= SMALL_ALLOCATION) {
		change_here(&job, in->nodeid);
		return 1;
	}
	if (hand_over(job))
		return 1;
	end_write(job.time, job.file);
	revoke_known(in->nodeid); /* Python minds the file's time now */
	return 0;
}

static int move_sync(struct job job, const struct fuse_in_header *in, const struct fuse_fsync_in *body)
{
	int error;

	job.flags = !!(body->fsync_flags & FUSE_FSYNC_FDATASYNC);
	if (in->opcode == FUSE_FSYNC && !job.flags)
		revoke_known(in->nodeid); /* its time goes to Python, which sets it: the kernel has none to tell */
	job.file = ask(in, job.flags, &error);
	return job.file < 0 ? error && answer(job.device, job.unique, error, NULL, 0) : hand_over(job);
}

int move_data(int device, char **request, size_t size)
{
	const struct fuse_in_header *in = (void *)*request;
	const void *body = in + 1;
	size_t rest = size - sizeof(*in);
	struct job job = {.opcode = in->opcode, .device = device, .unique = in->unique};

	switch (in->opcode) {
	case FUSE_READ:
		return rest >= sizeof(struct fuse_read_in) && move_read(job, in, body);
	case FUSE_WRITE:
		return rest >= sizeof(struct fuse_write_in) && move_write(job, request, body, rest);
	case FUSE_FALLOCATE:
		return rest >= sizeof(struct fuse_fallocate_in) && move_fallocate(job, in, body);
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
		return rest >= sizeof(struct fuse_fsync_in) && move_sync(job, in, body);
	}
	return 0;
}
