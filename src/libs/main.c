/* The program's entry: all of it is in src/cli, so that tests can drive it as a function. */
#include "cli/run.h"

int main(int argc, char **argv)
{
    return cli_main(argc, argv);
}
