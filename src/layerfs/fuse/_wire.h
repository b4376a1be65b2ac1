/* What the parts of the extension share. */

#ifndef LAYERFS_WIRE_H
#define LAYERFS_WIRE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* _direct.c: answers requests without libfuse and pyfuse3. */

/* Tries to answer the request of *size* bytes in *buffer*; 0 means that pyfuse3 is to do it. */
int answer_directly(int device, void *buffer, size_t size);

void answer_error(int device, uint64_t unique, int error);

extern PyMethodDef direct_methods[];

/* _blocking.c: reads that have to wait for a disk, and writes that may, in threads. */

/* Reads *size* bytes at *offset* of *file* and answers request *unique* with them; 0 where it cannot. */
int answer_read_later(int device, uint64_t unique, int file, uint64_t offset, uint32_t size);

#endif
