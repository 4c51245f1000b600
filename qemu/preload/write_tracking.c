/* Preloaded into QEMU: opens a userfaultfd in asynchronous write-protect mode for the process that is about to run, and
 * leaves it open. The agent takes the descriptor with pidfd_getfd(2) whenever it needs it and does everything else from
 * outside, so tracking survives the agent. Once QEMU's main has begun, only madvise(3) is answered here.
 *
 * Where the kernel lacks the mode (before Linux 6.7) nothing is opened: the agent sees that and captures without it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
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

/* Whether the file that is mapped at an address is in a FUSE file system: one that the agent shows while it comes. */
static int comes_yet(uintptr_t address)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    if (!maps)
        return 0;
    char *line = NULL;
    size_t room = 0;
    int comes = 0;
    while (getline(&line, &room, maps) > 0) {
        uintptr_t from, to;
        int path = 0;
        if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %n", &from, &to, &path) < 2 || address < from || address >= to)
            continue;
        line[strcspn(line, "\n")] = 0;
        struct statfs in;
        comes = line[path] == '/' && statfs(line + path, &in) == 0 && in.f_type == FUSE_SUPER_MAGIC;
        break;
    }
    free(line);
    fclose(maps);
    return comes;
}

/* QEMU asks for huge pages wherever its guest's memory is. Of a file that has not come yet, Linux then reads 4 MiB for each page that is touched
 * (do_sync_mmap_readahead in mm/filemap.c), and the guest waits for what it does not need; copies of a file's pages are never huge. */
__attribute__((visibility("default"))) int madvise(void *address, size_t length, int advice)
{
    if (advice == MADV_HUGEPAGE && comes_yet((uintptr_t)address))
        return 0;
    return syscall(SYS_madvise, address, length, advice);
}
