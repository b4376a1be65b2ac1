/*
 * The work of the benchmark that takes a microsecond or less, timed without Python around it.
 *
 *     probe PASSES OPERATION [ARGUMENT] <names
 *
 * does the operation on every name of the standard input (one a line, relative to the working
 * directory), PASSES times over, and prints the seconds of each pass, one a line. It starts when the
 * standard input ends, so that several can be made to start at once.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SMALL = 4096, LARGEST = 1 << 20 };

static char buffer[LARGEST];
static const char line[] = "2025-01-01T00:00:00Z host program[1234]: a line of a log, 72 bytes long\n";
static const char *argument = "";
static volatile unsigned char seen; /* so that the compiler keeps reads whose result nobody uses */

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static int opened(const char *path, int flags)
{
    int fd = open(path, flags, 0644);

    if (fd < 0)
        err(1, "open %s", path);
    return fd;
}

static void closed(int fd, const char *path)
{
    if (close(fd))
        err(1, "close %s", path);
}

static void stat_one(const char *path)
{
    struct stat attributes;

    if (lstat(path, &attributes))
        err(1, "lstat %s", path);
}

static void missing_one(const char *path)
{
    struct stat attributes;

    if (!lstat(path, &attributes) || errno != ENOENT)
        errx(1, "%s should not be there", path);
}

static void readlink_one(const char *path)
{
    if (readlink(path, buffer, PATH_MAX) < 0)
        err(1, "readlink %s", path);
}

static void read_one(const char *path)
{
    int fd = opened(path, O_RDONLY);

    if (read(fd, buffer, 1 << 16) < 0)
        err(1, "read %s", path);
    closed(fd, path);
}

static void create_one(const char *path)
{
    int fd = opened(path, O_WRONLY | O_CREAT | O_EXCL);

    if (write(fd, buffer, SMALL) != SMALL)
        err(1, "write %s", path);
    closed(fd, path);
}

static void touch_one(const char *path) /* one byte of what is there: a copy-up where it is lower */
{
    int fd = opened(path, O_WRONLY);

    if (pwrite(fd, "x", 1, 100) != 1)
        err(1, "pwrite %s", path);
    closed(fd, path);
}

static void rename_one(const char *path)
{
    char to[PATH_MAX];

    snprintf(to, sizeof to, "%s.renamed", path);
    if (rename(path, to))
        err(1, "rename %s", path);
}

static void unlink_one(const char *path)
{
    if (unlink(path))
        err(1, "unlink %s", path);
}

static void mkdir_one(const char *path)
{
    if (mkdir(path, 0755))
        err(1, "mkdir %s", path);
}

static void rmdir_one(const char *path)
{
    if (rmdir(path))
        err(1, "rmdir %s", path);
}

/* What programs do to a small file in its life: made, looked at, read again, renamed, removed. */
static void life_one(const char *path)
{
    char to[PATH_MAX];

    create_one(path);
    stat_one(path);
    read_one(path);
    rename_one(path);
    snprintf(to, sizeof to, "%s.renamed", path);
    unlink_one(to);
}

static void append_one(const char *path) /* ARGUMENT lines, one write each, as programs log */
{
    int fd = opened(path, O_WRONLY | O_CREAT | O_APPEND);

    for (long count = atol(argument); count; count--)
        if (write(fd, line, sizeof line - 1) != sizeof line - 1)
            err(1, "append to %s", path);
    closed(fd, path);
}

static void list_one(const char *path) /* the names alone; there must be ARGUMENT of them */
{
    long count = -2; /* . and .. */
    DIR *directory = opendir(path);

    if (!directory)
        err(1, "opendir %s", path);
    while (readdir(directory))
        count++;
    closedir(directory);
    if (count != atol(argument))
        errx(1, "%s lists %ld names", path, count);
}

static void walk(int fd, const char *path) /* lstat of everything below, as find -ls does */
{
    struct dirent *entry;
    struct stat attributes;
    DIR *directory = fdopendir(fd);

    if (!directory)
        err(1, "opendir %s", path);
    while ((entry = readdir(directory))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (fstatat(fd, entry->d_name, &attributes, AT_SYMLINK_NOFOLLOW))
            err(1, "fstatat %s/%s", path, entry->d_name);
        if (S_ISDIR(attributes.st_mode)) {
            int below = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY);

            if (below < 0)
                err(1, "open %s/%s", path, entry->d_name);
            walk(below, entry->d_name);
        }
    }
    closedir(directory);
}

static void walk_one(const char *path)
{
    walk(opened(path, O_RDONLY | O_DIRECTORY), path);
}

static void stream_one(const char *path) /* from begin to end, a MiB a read */
{
    int fd = opened(path, O_RDONLY);
    ssize_t count;

    while ((count = read(fd, buffer, LARGEST)))
        if (count < 0)
            err(1, "read %s", path);
    closed(fd, path);
}

static void map_one(const char *path) /* every byte, through a mapping */
{
    struct stat attributes;
    int fd = opened(path, O_RDONLY);
    char *map;

    if (fstat(fd, &attributes))
        err(1, "fstat %s", path);
    map = mmap(NULL, attributes.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        err(1, "mmap %s", path);
    for (off_t done = 0; done < attributes.st_size; done += LARGEST) {
        memcpy(buffer, map + done, attributes.st_size - done < LARGEST ? attributes.st_size - done : LARGEST);
        seen = buffer[0];
    }
    munmap(map, attributes.st_size);
    closed(fd, path);
}

static void fill(const char *path, int durable) /* a new file of ARGUMENT MiB, a MiB a write */
{
    int fd = opened(path, O_WRONLY | O_CREAT | O_EXCL);

    for (long count = atol(argument); count; count--)
        if (write(fd, buffer, LARGEST) != LARGEST)
            err(1, "write %s", path);
    if (durable && fsync(fd))
        err(1, "fsync %s", path);
    closed(fd, path);
}

static void write_one(const char *path)
{
    fill(path, 0);
}

static void fsync_one(const char *path)
{
    fill(path, 1);
}

static const struct {
    const char *name;
    void (*one)(const char *path);
} operations[] = {
    { "stat", stat_one },     { "missing", missing_one }, { "readlink", readlink_one }, { "read", read_one },
    { "create", create_one }, { "touch", touch_one },     { "rename", rename_one },     { "unlink", unlink_one },
    { "mkdir", mkdir_one },   { "rmdir", rmdir_one },     { "life", life_one },         { "append", append_one },
    { "list", list_one },     { "walk", walk_one },       { "stream", stream_one },     { "map", map_one },
    { "write", write_one },   { "fsync", fsync_one },
};

/* Read the standard input into memory; the names end where the text does. */
static char *input(size_t *length)
{
    char *text = NULL;
    size_t room = 0;

    *length = 0;
    for (;;) {
        size_t count;

        if (*length == room && !(text = realloc(text, room = room ? 2 * room : 1 << 16)))
            err(1, "names");
        count = fread(text + *length, 1, room - *length, stdin);
        if (!count)
            break;
        *length += count;
    }
    for (size_t place = 0; place < *length; place++)
        if (text[place] == '\n')
            text[place] = '\0';
    return text;
}

int main(int count, char **words)
{
    void (*one)(const char *path) = NULL;
    size_t length;
    char *names;

    if (count < 3)
        errx(2, "usage: probe PASSES OPERATION [ARGUMENT] <names");
    if (count > 3)
        argument = words[3];
    for (size_t place = 0; place < sizeof operations / sizeof *operations; place++)
        if (!strcmp(operations[place].name, words[2]))
            one = operations[place].one;
    if (!one)
        errx(2, "no operation %s", words[2]);
    names = input(&length);
    for (size_t place = 0; place < LARGEST; place++)
        buffer[place] = (char)(place * 2654435761u >> 7);
    mlockall(MCL_CURRENT); /* its own pages are not what is measured */

    for (int pass = atoi(words[1]); pass > 0; pass--) {
        double start = now();

        for (char *name = names; name < names + length; name += strlen(name) + 1)
            one(name);
        printf("%.9f\n", now() - start);
    }
    return 0;
}
