/*
 * kvm-script ENDPOINT SCRIPT...: play each script on "kvm" (the kernel's /dev/kvm) or "soft" (libsoftkvm)
 * and print the transcripts. Exit: 0, 77 when the only script's requirement is not met or the endpoint
 * is not there, 2 for a mistake in a script.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "player.h"

static void on_kick(int sig)
{
}

static int play(const char *endpoint, const char *path)
{
    struct base_error err = {{0}};
    struct player p = {.out = stdout, .vm = -1, .sys = -1};
    FILE *script = fopen(path, "r");
    int ret;

    if (!script) {
        perror(path);
        return 2;
    }
    p.ep = strcmp(endpoint, "kvm") == 0 ? accel_endpoint_kernel_new()
                                        : accel_endpoint_soft_new(NULL, &err);
    if (!p.ep) {
        fprintf(stderr, "%s: %s\n", endpoint, err.text);
        fclose(script);
        return 77;
    }
    ret = player_play(&p, script);
    if (ret == 2) {
        fprintf(stderr, "%s:%d: mistake in the script\n", path, p.line);
    }
    player_close(&p);
    p.ep->ops->free(p.ep);
    fclose(script);
    return ret;
}

int main(int argc, char **argv)
{
    struct sigaction act = {.sa_handler = on_kick};
    int worst = 0;

    if (argc < 3 || (strcmp(argv[1], "kvm") != 0 && strcmp(argv[1], "soft") != 0)) {
        fprintf(stderr, "usage: kvm-script kvm|soft SCRIPT...\n");
        return 2;
    }
    sigaction(ACCEL_KICK_SIGNAL, &act, NULL);
    for (int i = 2; i < argc; i++) {
        int ret;

        if (argc > 3) {
            printf("== %s\n", argv[i]);
        }
        ret = play(argv[1], argv[i]);
        if (ret == 77 && argc > 3) {
            printf("SKIP\n");
            ret = 0;
        }
        worst = ret > worst ? ret : worst;
    }
    return worst;
}
