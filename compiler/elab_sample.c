// Sample blocks (in the making: they are passed over).
#include "compiler/elab.h"
void elab_sample(Elab *e, Decl *d){(void)e;(void)d;}
bool host_wants(Elab *e, Value c, const Args *a){(void)e;(void)c;(void)a;return false;}
Value host_call(Elab *e, Value c, Args *a){(void)e;(void)a;return c;}
Value host_if(Elab *e, Frame *f, const Ast *a, Value c){(void)e;(void)f;(void)a;return c;}
Value host_is_none(Elab *e, Value c){(void)e;return c;}
Value host_random(Elab *e, Val v){(void)e;return value_tensor(v);}
