/* For instructions.sh: a program on io_uring under valgrind.
 *
 * Valgrind lets one thread run at a time, and others only while it is in a system call that is known to block.
 * io_uring_enter(2) is not (3.19), so a worker that waits in it stops all other threads, for ever if one of them is to
 * start what it waits for. Preloaded, this waits by ppoll(2) for the ring to have completions, and enters then.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>

enum { GETEVENTS = 1, EXT_ARG = 8 };

/* struct io_uring_getevents_arg, which older headers lack. */
struct wait_arguments {
    uint64_t sigmask;
    uint32_t sigmask_size, pad;
    uint64_t timeout;
};

long syscall(long number, ...) {
    static long (*next)(long, ...);
    if (!next)
        next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    long all[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        all[i] = va_arg(list, long);
    va_end(list);
    long ring = all[0], to_submit = all[1], least = all[2], flags = all[3];
    if (number != SYS_io_uring_enter || least == 0)
        return next(number, all[0], all[1], all[2], all[3], all[4], all[5]);

    long submitted = 0;
    if (to_submit > 0) {
        submitted = next(number, ring, to_submit, 0L, flags & ~(GETEVENTS | EXT_ARG), 0L, 0L);
        if (submitted < 0)
            return submitted;
    }
    const struct timespec *timeout = 0;
    if ((flags & EXT_ARG) && all[4])
        timeout = (const struct timespec *)((const struct wait_arguments *)all[4])->timeout;
    struct pollfd poll = {.fd = (int)ring, .events = POLLIN};
    int ready;
    do
        ready = ppoll(&poll, 1, timeout, 0);
    while (ready < 0 && errno == EINTR);
    if (ready == 0 && submitted == 0) {
        errno = ETIME;
        return -1;
    }
    /* What has completed is put into the ring by a call. */
    next(number, ring, 0L, 0L, (long)GETEVENTS, 0L, 0L);
    return submitted;
}
