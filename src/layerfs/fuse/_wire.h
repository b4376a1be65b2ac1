/* What the parts of the extension share. */

#ifndef LAYERFS_WIRE_H
#define LAYERFS_WIRE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* _direct.c: answers requests without libfuse and pyfuse3. */

/* Tries to answer the request of *size* bytes in **buffer*; 0 means that pyfuse3 is to do it.
 *
 * Where the answer takes longer the buffer is kept, and *buffer set to NULL. */
int answer_directly(int device, char **buffer, size_t size);

void answer_error(int device, uint64_t unique, int error);

extern PyMethodDef direct_methods[];

/* _entry.c: what the kernel is told of an inode. */

extern PyMethodDef entry_methods[];

/* _blocking.c: reads that have to wait for a disk, and writes that may, in threads. */

/* Reads *size* bytes at *offset* of *file* and answers request *unique* with them; 0 where it cannot. */
int answer_read_later(int device, uint64_t unique, int file, uint64_t offset, uint32_t size);

/* The same for a write of *data* in the buffer *request*, which it keeps. */
int answer_write_later(int device, uint64_t unique, int file, uint64_t offset, uint32_t size, char *request,
		       char *data);

/* Writes all of *data*; returns 0 or an errno. */
int write_all(int file, const char *data, uint32_t size, uint64_t offset);

/* A buffer for requests, all of which have the same size; from malloc, or NULL. */
char *request_buffer(size_t size);

extern PyMethodDef blocking_methods[];

#endif
