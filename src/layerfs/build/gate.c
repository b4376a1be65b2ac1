/* What a container runs until its command may begin: it says that it is there, waits for the word, and becomes it.
 *
 *     gate PROGRAM... with descriptor 3 on itself, 4 on a socket, 5 and 6 on where output and errors go
 *
 * A runtime that has started this has done all of its work: namespaces, mounts, rights and the filter of system
 * calls. Nothing of the tree has been looked at for the command, because another one may still work on it: the
 * directory, and the program by PATH, are looked up after the word. No link to the C library of any image, as
 * there may be none.
 *
 * A runtime's own output and errors are pipes from which it copies: it may have something left in its hands when the
 * command has ended.
 *
 * On the socket: "r" from here, with which the kernel tells our process; the word is "g" and the directory to
 * enter, if any; the answer is "e", or "d" and errno where that cannot be entered. Then "x" and errno come if there
 * is no program to execute. When the other end is closed before the word, the command never begins. The calls for
 * this are read(2) and write(2): whoever gives a filter of his own may not allow those of sockets.
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SELF = 3, SOCKET = 4, OUTPUT = 5, ERRORS = 6, NOT_BEGUN = 125 };

extern char **environ;

static void say(char kind, int error)
{
    char message[1 + sizeof error];

    message[0] = kind;
    memcpy(message + 1, &error, sizeof error);
    if (write(SOCKET, message, error ? sizeof message : 1) < 0)
        _exit(NOT_BEGUN); /* nobody is there any more */
}

/* Execute what the first word names as a runtime does: by PATH where it has no slash. Return only on failure. */
static int execute(char **words)
{
    const char *place = getenv("PATH");
    size_t length = strlen(words[0]);
    char path[PATH_MAX];

    if (strchr(words[0], '/')) {
        execve(words[0], words, environ);
        return errno;
    }
    while (place && *place) {
        size_t size = strcspn(place, ":");

        /* No directory means the one to work in, in which a runtime looks for nothing. */
        if (*place == '/' && size + length + 2 <= sizeof path) {
            memcpy(path, place, size);
            path[size] = '/';
            memcpy(path + size + 1, words[0], length + 1);
            execve(path, words, environ);
            if (errno != ENOENT && errno != ENOTDIR && errno != EACCES)
                return errno;
        }
        place += size + (place[size] == ':');
    }
    return ENOENT;
}

int main(int count, char **words)
{
    char word[1 + PATH_MAX];
    ssize_t length;

    if (count < 2 || fcntl(SOCKET, F_SETFD, FD_CLOEXEC) < 0)
        return NOT_BEGUN;
    if (dup2(OUTPUT, STDOUT_FILENO) < 0 || dup2(ERRORS, STDERR_FILENO) < 0)
        return NOT_BEGUN;
    close(OUTPUT);
    close(ERRORS);
    close(SELF);
    say('r', 0);
    do
        length = read(SOCKET, word, sizeof word - 1);
    while (length < 0 && errno == EINTR);
    if (length <= 0 || word[0] != 'g')
        return NOT_BEGUN;
    word[length] = '\0';
    if (word[1] && chdir(word + 1) < 0) {
        say('d', errno);
        return NOT_BEGUN;
    }
    say('e', 0);
    say('x', execute(words + 1));
    return NOT_BEGUN;
}
