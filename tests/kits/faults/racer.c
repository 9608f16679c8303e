/* Exchanges two names at the moments at which another program uses a folder, as an attacker would.
 *
 *   racer WATCHED PATTERN A B HOLD_US    at each event in the folder WATCHED for a name that fits PATTERN: exchange A
 *                                        and B, wait, exchange them back; "%s" in A is the name. With "read:" before
 *                                        PATTERN only when a file was closed after reading.
 *   racer - - A B HOLD_US                exchange them again and again, without waiting for events
 *
 * Ends at SIGTERM and prints what it did: events, swaps, failed attempts, the last errno. Exits with 3 when the folder
 * cannot be watched.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fnmatch.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_renameat2
#define SYS_renameat2 316
#endif
#define HERE -100    /* AT_FDCWD */
#define EXCHANGE 2   /* RENAME_EXCHANGE */

static volatile sig_atomic_t done;
static long events, swaps, failures;
static int last_errno;

static void stop(int number) { (void)number; done = 1; }

static int exchange(const char *a, const char *b)
{
    if (syscall(SYS_renameat2, HERE, a, HERE, b, EXCHANGE) == 0)
        return 1;
    failures++;
    last_errno = errno;
    return 0;
}

static void swap(const char *a, const char *b, int hold_us)
{
    if (exchange(a, b)) {
        swaps++;
        usleep(hold_us);
        while (!exchange(a, b) && !done)
            usleep(100);
    }
}

int main(int count, char **words)
{
    char buffer[65536] __attribute__((aligned(8)));
    char a[PATH_MAX];
    if (count != 6)
        return 2;
    const char *watched = words[1], *pattern = words[2], *b = words[4];
    int hold_us = atoi(words[5]), notify = -1;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = stop; /* without SA_RESTART: it interrupts read */
    sigaction(SIGTERM, &action, 0);
    if (strcmp(watched, "-") != 0) {
        notify = inotify_init1(IN_CLOEXEC);
        unsigned mask = IN_CREATE | IN_MOVED_TO | IN_OPEN | IN_CLOSE_NOWRITE | IN_CLOSE_WRITE | IN_ATTRIB;
        if (strncmp(pattern, "read:", 5) == 0) {
            mask = IN_CLOSE_NOWRITE;
            pattern += 5;
        }
        if (inotify_add_watch(notify, watched, mask) < 0) {
            printf("events 0 swaps 0 failed 1 errno %d\n", errno);
            return 3;
        }
    }
    printf("ready\n");
    fflush(stdout);
    while (!done) {
        if (notify < 0) {
            swap(words[3], b, hold_us);
            usleep(hold_us);
            continue;
        }
        ssize_t size = read(notify, buffer, sizeof buffer);
        for (char *at = buffer; size > 0 && at < buffer + size;) {
            struct inotify_event *event = (struct inotify_event *)at;
            at += sizeof *event + event->len;
            if (done || !event->len || fnmatch(pattern, event->name, 0) != 0)
                continue;
            events++;
            snprintf(a, sizeof a, words[3], event->name);
            swap(a, b, hold_us);
        }
    }
    printf("events %ld swaps %ld failed %ld errno %d\n", events, swaps, failures, last_errno);
    return 0;
}
