"""The cloud on many devices: meshes, schedules, plans and pipelines."""

from splitjax.parallel.border import borders as borders
from splitjax.parallel.cost import block_costs as block_costs
from splitjax.parallel.machine import Machine as Machine
from splitjax.parallel.mesh import check_agreement as check_agreement
from splitjax.parallel.mesh import join_processes as join_processes
from splitjax.parallel.mesh import make_cloud_mesh as make_cloud_mesh
from splitjax.parallel.mpmd import mpmd as mpmd
from splitjax.parallel.piped import piped as piped
from splitjax.parallel.plan import best as best
from splitjax.parallel.plan import candidates as candidates
from splitjax.parallel.rules import RULES as RULES
from splitjax.parallel.rules import Rule as Rule
from splitjax.parallel.rules import place as place
from splitjax.parallel.scale import Scale as Scale
from splitjax.parallel.scale import checkpointed as checkpointed
from splitjax.parallel.schedule import schedule as schedule
from splitjax.parallel.spmd import pipelined as pipelined
from splitjax.parallel.spread import spread as spread
from splitjax.parallel.stages import staged as staged
from splitjax.parallel.timeline import simulate as simulate
from splitjax.parallel.zero import make_trainer as make_trainer
