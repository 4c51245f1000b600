/* Preloaded into QEMU: opens a userfaultfd in asynchronous write-protect mode for the process that is about to run, and
 * leaves it open. The agent takes the descriptor with pidfd_getfd(2) whenever it needs it and does everything else from
 * outside, so tracking survives the agent. Nothing of this runs once QEMU's main has begun.
 *
 * Where the kernel lacks the mode (before Linux 6.7) nothing is opened: the agent sees that and captures without it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Debian 12's headers are older than the kernels this is for. */
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

__attribute__((constructor)) static void open_tracking(void)
{
    unsetenv("LD_PRELOAD");
    int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (uffd < 0)
        return;
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED};
    if (ioctl(uffd, UFFDIO_API, &api) < 0)
        close(uffd);
}
