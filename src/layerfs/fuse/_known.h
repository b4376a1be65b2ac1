/* An inode of which something is known: see _known.c. */

#ifndef LAYERFS_KNOWN_H
#define LAYERFS_KNOWN_H

#include "_wire.h"

struct known {
	uint64_t inode; /* 0: the place is free */
	unsigned epoch, used;
	int fd; /* -1: it is not vouched for */
	char is_file, no_capability, has_attributes;
	char late, has_shown; /* with a descriptor: the file has the time `shown` */
	union {
		struct { /* with a descriptor */
			int links; /* what to say; 0: what the object has */
			unsigned round;        /* of a late one: when it was last written to, as settle_times() counts */
			struct timespec shown; /* of a late one: the modification time that the kernel has told last */
		};
		struct fuse_attr attributes; /* without */
	};
};

/* The entry of an inode, NULL where there is none that holds. */
struct known *find_known(uint64_t inode);

/* Vouches for it no more. */
void let_go(struct known *known);

#endif
