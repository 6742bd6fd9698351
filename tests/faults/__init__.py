"""What breaks, and what the command makes of it: each row a test with the real fault.

`read`: all, or all but what the fault itself keeps back. `ends`: how soon after the fault, where
that is bounded; otherwise the run goes on, and ends with its reading. Rows whose test lies elsewhere
are named with their module; those of `vm` run in the test machine (make test-vm). test_table.py
keeps the table and the tests together.

fault                                   exit  read     message                         ends         test
EIO in the middle of a file             1     others   Input/output error              -            test_storage::eio_in_the_middle
EIO on a disk                           1     others   Input/output error              -            vm.test_faults::a_disk_that_fails_in_the_middle
EIO on open                             1     none     Input/output error              -            test_storage::eio_on_open
EACCES                                  1     others   Permission denied               -            run.test_end_to_end::a_shard_without_permission_fails_alone
ENOENT between plan and read            1     others   No such file or directory       -            test_storage::a_shard_that_vanishes
the directory vanishes                  1     what is open  No such file or directory  -            test_storage::a_directory_that_vanishes
a stale handle (NFS)                    1     others   Stale file handle               -            vm.test_stalls::files_that_are_removed_are_failures
a file cut short while read             1     the rest it was cut short while it was read -            test_storage::a_shard_cut_short
a file that grows while read            0     all      none                            -            test_storage::a_shard_that_grows
a file replaced while read              0     all      none                            -            test_storage::a_shard_that_is_replaced
a read that returns short each time     0     all      none                            -            test_storage::reads_that_return_short
a read that never returns               143   others   waiting N s for FILE at offset  1 s          alone.machine.test_signals::a_mount_that_hangs_while_reading
nothing ever answers                    1     none     expected an answer within       limit + 1 s  alone.machine.test_signals::a_mount_that_hangs_before_anything_is_known
16 descriptors, 64 threads, 500 files   0     all      none                            -            alone.own.test_limits::few_descriptors
threads refused                         0     all      none                            -            alone.own.test_limits::few_threads
no thread at all                        1     none     expected to start threads       at once      alone.own.test_limits::no_threads
address space limited                   0     all      none                            -            alone.own.test_limits::little_address_space
memory limit reached while reading      0     the tail expected to stay                -            vm.test_memory_limits::force_reads_all_keeps_the_tail_and_says_so
output closed, full, cut                0     all      none                            -            unit.show.test_streams::a_stream_that_fails_stops_nothing
output that nobody reads                143   what was none                            1 s          alone.machine.test_signals::an_output_that_nobody_reads_does_not_hold_it
20 columns                              0     all      none                            -            alone.machine.test_terminal::the_bar_fits
TERM=dumb                               0     all      none                            -            alone.machine.test_terminal::a_terminal_without_a_cursor_gets_log_lines
a terminal that goes away               0     all      none                            -            alone.machine.test_terminal::a_terminal_that_goes_away_stops_nothing
SIGHUP, SIGINT, SIGTERM                 128+N what was interrupted by NAME             1 s          alone.machine.test_signals::a_signal_ends_with_its_code_and_what_was_read
SIGINT twice                            130   what was none                            at once      alone.machine.test_signals::a_second_interrupt_ends_at_once
SIGPIPE                                 0     all      none                            -            unit.show.test_streams::a_stream_that_fails_stops_nothing
SIGKILL                                 137   what was none, and no process stays      at once      alone.machine.test_crowd::a_killed_run_leaves_nothing
SIGSTOP, SIGCONT                        0     all      none                            -            alone.machine.test_signals::a_run_that_is_stopped_goes_on
clock steps                             0     all      none                            -            vm.test_faults::a_clock_that_steps
/proc not mounted                       0     all      file system "unknown"           -            alone.own.test_surroundings::without_proc
/sys not mounted                        0     all      none                            -            alone.own.test_surroundings::without_sys
cachestat refused                       0     all      none; method mincore            -            test_refusals::cachestat
cachestat and mincore refused           0     all      none; an estimate               -            test_refusals::residency
nothing tells residency                 0     all      residency unknown               -            test_refusals::all_residency
nothing tells residency, --evict        0     -        residency unknown               -            test_refusals::eviction_where_nothing_tells
fadvise refused                         0     all      none                            -            test_refusals::advice
fadvise refused, --evict                1     -        Operation not permitted         -            test_refusals::eviction
sendfile refused                        0     all      none; engine read               -            test_refusals::splice
locale C                                0     all      names escaped                   -            alone.own.test_surroundings::locale_c
locale C, names in an index or a RECORD 0     all      none                            -            alone.own.test_surroundings::names_that_files_of_text_hold_in_locale_c
a read-only root file system            0     all      none                            -            alone.own.test_surroundings::a_read_only_root
HOME unset                              0     all      none                            -            alone.own.test_surroundings::no_home
two warmers at once                     0, 0  each byte once  none                     -            alone.machine.test_crowd::two_warmers
64 ranks at once                        0     each byte once  none                     -            alone.machine.test_crowd::sixty_four_ranks
"""  # noqa: E501 - a table
