/* What the parts of the extension share. */

#ifndef LAYERFS_WIRE_H
#define LAYERFS_WIRE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <linux/fuse.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define LARGE (1 << 16) /* bytes to read or write at once */
#define LARGEST_READ (1 << 20)
#define FOREVER (10ULL * 365 * 86400) /* seconds for which answers hold: nobody else changes anything */

/* _wire.c: the agreement with the kernel. */

/* The errno to answer at once, 0 for a request that has to be looked at. */
int refusal(const struct fuse_in_header *header);

/* Notes what pyfuse3 would lose of a request that goes to it, and gives it the handle that it needs. */
void look_at_request(const struct fuse_in_header *header, void *body, size_t size);

/* _answer.c: writing answers. Any thread may. */

/* Writes an answer: an errno, or 0 and a payload. What the device refuses is answered EIO. Returns 1. */
int answer(int device, uint64_t unique, int error, const void *payload, size_t size);

/* The same for a whole message, a notification too, as writev(2) does it. */
ssize_t send_answer(int device, struct iovec *iov, int count);

extern PyMethodDef answer_methods[];

/* _loop.c: reading requests, and waiting for them. */

/* Reads requests until one comes that pyfuse3 is to answer, which it returns as read(2) does. */
ssize_t read_request(int fd, void *buffer, size_t size, void *userdata);

/* Gives back a buffer that a request was read into. Any thread may. */
void release_buffer(char *bytes);

extern PyMethodDef loop_methods[];

/* _direct.c: answers requests without libfuse and pyfuse3. */

/* Tries to answer the request of *size* bytes in **buffer*; 0 means that pyfuse3 is to do it.
 *
 * Where the answer takes longer the buffer is kept, and *buffer set to NULL. */
int answer_directly(int device, char **buffer, size_t size);

extern PyMethodDef direct_methods[];

/* _entry.c: what the kernel is told of an inode. */

/* What people see as the number of a node: see layerfs/union/node.py, shown_number(). */
static inline uint64_t shown(uint64_t node)
{
	return node >> 60 & 1 ? node : node & ((1ULL << 56) - 1);
}

/* Fills *attr* from *st*, with links and blocks as the object has them. */
void fill_from_stat(struct fuse_attr *attr, uint64_t inode, const struct stat *st);

extern PyMethodDef entry_methods[];

/* _times.c: the modification time of a file while writes to it are under way. Any thread may call these. */

struct write_time;

/* Notes that *inode*, for which the kernel shows the modification time *shown* (UTIME_OMIT: not known), is about to
 * be written to. The result is for end_write(). */
struct write_time *begin_write(uint64_t inode, struct timespec shown);

/* Notes that it has been, through *file*; whether the file now has the time that the kernel shows. */
int end_write(struct write_time *write, int file);

/* Notes that the kernel tells a new time, which is to be set after this; whether writes are under way. */
int tell_writes(uint64_t inode, struct timespec time);

int is_being_written(uint64_t inode);

extern PyMethodDef times_methods[];

/* _blocking.c: reads that have to wait for a disk, and writes that may, in threads. */

/* Reads *size* bytes at *offset* of *file* and answers request *unique* with them; 0 where it cannot.
 *
 * The disk is asked for *ahead* bytes more. */
int answer_read_later(int device, uint64_t unique, int file, uint64_t offset, uint32_t size, uint32_t ahead);

/* The same for a write of *data* in the buffer *request*, which it keeps; it ends the write *time*. */
int answer_write_later(int device, uint64_t unique, int file, uint64_t offset, uint32_t size, char *request,
		       const char *data, struct write_time *time);

/* The same for fallocate(2), which counts as a write. */
int answer_fallocate_later(int device, uint64_t unique, int file, int mode, uint64_t offset, uint64_t length,
			   struct write_time *time);

/* The same for fsync(2) of *file*, or fdatasync(2), as sync_file() does it. */
int answer_sync_later(int device, uint64_t unique, int file, int data_only);

/* Writes all of *data*; returns 0 or an errno. */
int write_all(int file, const char *data, uint32_t size, uint64_t offset);

/* fallocate(2); returns 0 or an errno. */
int allocate(int file, int mode, uint64_t offset, uint64_t length);

/* How many of those writes are not done yet. */
int writes_under_way(void);

extern PyMethodDef blocking_methods[];

/* _lost.c: syncs that failed. */

/* fsync(2) or fdatasync(2); returns 0 or an errno, that of an earlier one, too. Any thread may. */
int sync_file(int file, int data_only);

extern PyMethodDef lost_methods[];

/* _ahead.c: reading ahead. */

/* How much after this read is likely to be wanted next. To be told of every read, in their order. */
uint32_t bytes_ahead(uint64_t inode, uint64_t offset, uint32_t size);

/* _known.c: what Python has vouched for. */

/* Answers a request if the inode is known and the request one of the usual; else 0. */
int answer_known(int device, const struct fuse_in_header *in, const void *body, size_t size);

/* The descriptor of a known file that is about to be written to, or -1; sets what the kernel shows as its time. */
int known_file_to_write(uint64_t inode, struct timespec *shown);

/* Notes that a known file has that time again. */
void known_time_is_set(uint64_t inode);

void drop_known(uint64_t inode);

extern PyMethodDef known_methods[];

/* _unchanging.c: attributes that stay as they are. */

/* Answers a request for attributes if they are kept here; else 0. */
int answer_unchanging(int device, const struct fuse_in_header *in);

void drop_unchanging(uint64_t inode);

extern PyMethodDef unchanging_methods[];

#endif
