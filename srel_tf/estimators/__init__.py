"""From changes of predictions to S_rel: the finite step, its limit, and both in one."""
