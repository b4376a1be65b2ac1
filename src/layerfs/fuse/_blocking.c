/* Reads that wait for a disk: a few threads do them, and answer, while everything else goes on. */

#define _GNU_SOURCE
#include "_wire.h"

#include <errno.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST_THREADS 8

struct job {
	struct job *next;
	int device, file;
	uint64_t unique, offset;
	uint32_t size;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static struct job *first, **last = &first;
static int threads, idle;

static void do_read(const struct job *job, char *buffer)
{
	struct fuse_out_header header = {.len = sizeof(header), .unique = job->unique};
	struct iovec iov[2] = {{&header, sizeof(header)}, {buffer, 0}};
	ssize_t got = 0;

	while (iov[1].iov_len < job->size) {
		got = pread(job->file, buffer + iov[1].iov_len, job->size - iov[1].iov_len,
			    job->offset + iov[1].iov_len);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		iov[1].iov_len += got;
	}
	if (got < 0 && !iov[1].iov_len)
		header.error = -errno;
	header.len += iov[1].iov_len;
	(void)!writev(job->device, iov, iov[1].iov_len ? 2 : 1);
	close(job->file);
}

static void *work(void *nothing)
{
	char *buffer = NULL;
	size_t room = 0;

	pthread_mutex_lock(&lock);
	for (;;) {
		struct job *job;

		while (!first) {
			idle++;
			pthread_cond_wait(&more, &lock);
			idle--;
		}
		job = first;
		first = job->next;
		if (!first)
			last = &first;
		pthread_mutex_unlock(&lock);
		if (room < job->size) {
			free(buffer);
			room = job->size;
			buffer = malloc(room);
		}
		if (buffer) {
			do_read(job, buffer);
		} else {
			struct fuse_out_header header = {
				.len = sizeof(header), .error = -ENOMEM, .unique = job->unique};

			(void)!write(job->device, &header, sizeof(header));
			close(job->file);
			room = 0;
		}
		free(job);
		pthread_mutex_lock(&lock);
	}
	return nothing;
}

int answer_read_later(int device, uint64_t unique, int file, uint64_t offset, uint32_t size)
{
	struct job *job = malloc(sizeof(*job));
	int own = job ? dup(file) : -1; /* the other may be closed meanwhile */

	if (own < 0) {
		free(job);
		return 0;
	}
	*job = (struct job){.device = device, .file = own, .unique = unique, .offset = offset, .size = size};
	pthread_mutex_lock(&lock);
	*last = job;
	last = &job->next;
	if (!idle && threads < MOST_THREADS) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, work, NULL) == 0) {
			pthread_detach(thread);
			threads++;
		}
	}
	pthread_cond_signal(&more);
	pthread_mutex_unlock(&lock);
	return 1;
}
