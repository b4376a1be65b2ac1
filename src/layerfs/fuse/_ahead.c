/* How far to read ahead of a reader: twice as far as it has read without a gap.
 *
 * Several threads read one file, so the kernel sees no sequence in what they read of the layer's file. Here the
 * requests still have their order. Reading ahead of a single read at a random place would read many times
 * what is asked for.
 */

#include "_wire.h"

#define STREAMS 32 /* readers that are told apart; two may read one file */
#define MOST_AHEAD (8 << 20)

static struct stream {
	uint64_t inode, end; /* where the next read begins if it goes on */
	uint64_t run;	     /* bytes read without a gap */
	uint64_t latest;
} streams[STREAMS];

uint32_t bytes_ahead(uint64_t inode, uint64_t offset, uint32_t size)
{
	static uint64_t reads;
	struct stream *stream = NULL, *oldest = streams;
	uint64_t ahead;

	for (size_t i = 0; i < STREAMS && !stream; i++) {
		if (streams[i].inode == inode && streams[i].end == offset)
			stream = &streams[i];
		else if (streams[i].latest < oldest->latest)
			oldest = &streams[i];
	}
	if (!stream) {
		stream = oldest;
		*stream = (struct stream){.inode = inode};
	}
	stream->latest = ++reads;
	stream->end = offset + size;
	ahead = 2 * stream->run;
	stream->run += size;
	return ahead < MOST_AHEAD ? ahead : MOST_AHEAD;
}
