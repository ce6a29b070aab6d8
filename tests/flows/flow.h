/* What scenarios in files of their own share with flow_test.c. */
#ifndef STRATA_TESTS_FLOWS_FLOW_H
#define STRATA_TESTS_FLOWS_FLOW_H

/* Forget what was recorded; from now on record trace points whose names begin with one of the prefixes, which end with
 * null. stop: no more. */
void flow_start(const char *const *prefixes);
void flow_stop(void);

/* For softkvm_options.trace and its like. */
void flow_record(void *opaque, const char *name, const char *file, const char *function, const char *text);

/* Scenarios of shadow.md: 0, or -1 when the guest did not do as it should. */
int flow_shadow_map(void);
int flow_shadow_upper(void);
int flow_shadow_unsync(void);
int flow_shadow_guest(void);

#endif
