/* Says what time it is, in seconds since the machine's start: "clock WORD" prints "@WORD SECONDS". */
#include <stdio.h>
#include <time.h>

int main(int count, char **words)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    printf("@%s %lld.%09ld\n", count > 1 ? words[1] : "", (long long)time.tv_sec, time.tv_nsec);
    return 0;
}
