/* What the parts of the extension share. */

#ifndef LAYERFS_WIRE_H
#define LAYERFS_WIRE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <linux/fuse.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define CAPABILITY "security.capability" /* asked for of each file by what writes or copies it */
#define FOREVER (10ULL * 365 * 86400) /* seconds for which answers hold: nobody else changes anything */

/* _wire.c: the agreement with the kernel. */

/* Notes what is to be known of a request that goes to libfuse. */
void look_at_request(const struct fuse_in_header *header, const void *body);

/* _answer.c: writing answers. Any thread may. */

/* Writes an answer: an errno, or 0 and a payload. What the device refuses is answered EIO. Returns 1. */
int answer(int device, uint64_t unique, int error, const void *payload, size_t size);

/* The same for a whole message, a notification too, as writev(2) does it. */
ssize_t send_answer(int device, struct iovec *iov, int count);

extern PyMethodDef answer_methods[];

/* _loop.c: reading requests, and waiting for them. */

/* Reads requests until one comes that pyfuse3 is to answer, which it returns as read(2) does. */
ssize_t read_request(int fd, void *buffer, size_t size, void *userdata);

/* Lets the event loop have its turn before the next request is read: tasks wait for that. */
void give_turn(void);

/* Gives back a buffer that a request was read into. Any thread may. */
void release_buffer(char *bytes);

extern PyMethodDef loop_methods[];

/* _direct.c: the table of requests, and those that are answered without libfuse and pyfuse3. */

/* Tries to answer the request of *size* bytes in **buffer*; 0 means that pyfuse3 is to do it.
 *
 * Where the answer takes longer the buffer is kept, and *buffer set to NULL. */
int answer_directly(int device, char **buffer, size_t size);

/* Leaves requests, which would be refused, to pyfuse3. */
void answer_by_pyfuse3(uint32_t opcode);

/* The descriptor by which a request can be done, from Python, which is told *flag*: -1 where there is none, with an
 * *error or 0 for "not now". */
int ask(const struct fuse_in_header *in, int flag, int *error);

extern PyMethodDef direct_methods[];

/* _entry.c: what the kernel is told of an inode. */

/* What people see as the number of a node: see layerfs/union/node.py, shown_number(). */
static inline uint64_t shown(uint64_t node)
{
	return node >> 60 & 1 ? node : node & ((1ULL << 56) - 1);
}

/* Fills *attr* from *st*, with links and blocks as the object has them. */
void fill_from_stat(struct fuse_attr *attr, uint64_t inode, const struct stat *st);

/* Fills *attr*, and *node* with its number, from a tuple (inode, stat, links, blocks); -1 with an exception. */
int fill_from_told(struct fuse_attr *attr, uint64_t *node, PyObject *told);

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

/* _data.c: moving data by descriptors. */

/* A read, write, allocation or sync that is to be done. */
struct job {
	struct job *next;
	uint32_t opcode;
	int device, file;
	uint64_t unique, offset;
	uint64_t serial; /* of what writes: they are counted */
	uint64_t length; /* to read, write or allocate */
	uint32_t ahead;	 /* of a read: as much after it will be wanted, too */
	int flags;	 /* the mode of fallocate(2); of a sync: data only */
	char *request;	 /* of a write: the buffer, and where in it the data is */
	const char *data;
	struct write_time *time; /* of what changes data */
};

struct outcome {
	int error, time_is_set;
	const void *payload;
	size_t size;
	struct fuse_write_out written;
};

static inline int changes_data(const struct job *job)
{
	return job->opcode == FUSE_WRITE || job->opcode == FUSE_FALLOCATE;
}

/* Does the job, which may take long; what is read goes to **buffer*, which is made if need be. Any thread may. */
void do_job(const struct job *job, char **buffer, struct outcome *outcome);

void answer_job(const struct job *job, const struct outcome *outcome);

/* Tries to answer a request by a descriptor, as answer_directly(). */
int move_data(int device, char **request, size_t size);

/* _blocking.c: threads for what has to wait for a disk, or may. */

/* Has a thread do a job and answer, whose buffer *request* is its own from then on; 0 where that cannot be. */
int hand_over(struct job what);

extern PyMethodDef blocking_methods[];

/* _lost.c: syncs that failed. */

/* fsync(2) or fdatasync(2); returns 0 or an errno, that of an earlier one, too. Any thread may. */
int sync_file(int file, int data_only);

extern PyMethodDef lost_methods[];

/* _ahead.c: reading ahead. */

/* How much after this read is likely to be wanted next. To be told of every read, in their order. */
uint32_t bytes_ahead(uint64_t inode, uint64_t offset, uint32_t size);

/* _known.c: what is known of inodes. */

/* Answers a request if the inode is known and the request one of the usual; else 0. */
int answer_known(int device, const struct fuse_in_header *in, const void *body, size_t size);

/* The descriptor of a known file that is about to be written to, or -1; sets what the kernel shows as its time. */
int known_file_to_write(uint64_t inode, struct timespec *shown);

/* Notes that a known file has that time again. */
void known_time_is_set(uint64_t inode);

/* Vouches for it no more. */
void revoke_known(uint64_t inode);

void drop_known(uint64_t inode);

/* Whether a request is for the attribute `security.capability`; notes that an inode has none. */
int asks_for_capability(const struct fuse_in_header *in, const void *body, size_t size);
void note_no_capability(uint64_t inode);

/* Whether that has been asked for lately, as of this lookup. */
int is_capability_wanted(void);

/* Keeps what to say of an inode that does not change. */
void keep_attributes(uint64_t inode, const struct fuse_attr *attributes);

extern PyMethodDef known_methods[];

#endif
