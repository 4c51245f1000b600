//! How a stored form is made from what it stands for, and back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::state::{Event, Events, Owned, OwnedMap, SharedMap, Vm, VmId, Vms};

/// A stored form of `M`.
pub trait Mirror<M>: Sized {
    /// The stored form.
    fn store(model: &M) -> Self;
    /// What it stands for.
    fn load(self) -> M;
}

macro_rules! as_they_are {
    ($($name:ty),* $(,)?) => {$(
        impl Mirror<$name> for $name {
            fn store(model: &Self) -> Self {
                model.clone()
            }
            fn load(self) -> Self {
                self
            }
        }
    )*};
}
as_they_are!(bool, u8, u16, u32, i32, u64, u128, String, [u8; 32]);

impl<T: Mirror<M>, M> Mirror<Option<M>> for Option<T> {
    fn store(model: &Option<M>) -> Self {
        model.as_ref().map(T::store)
    }
    fn load(self) -> Option<M> {
        self.map(T::load)
    }
}

impl<T: Mirror<M>, M> Mirror<Vec<M>> for Vec<T> {
    fn store(model: &Vec<M>) -> Self {
        model.iter().map(T::store).collect()
    }
    fn load(self) -> Vec<M> {
        self.into_iter().map(T::load).collect()
    }
}

impl<T: Mirror<M> + Ord, M: Ord> Mirror<BTreeSet<M>> for BTreeSet<T> {
    fn store(model: &BTreeSet<M>) -> Self {
        model.iter().map(T::store).collect()
    }
    fn load(self) -> BTreeSet<M> {
        self.into_iter().map(T::load).collect()
    }
}

impl<K: Mirror<N> + Ord, N: Ord, T: Mirror<M>, M> Mirror<BTreeMap<N, M>> for BTreeMap<K, T> {
    fn store(model: &BTreeMap<N, M>) -> Self {
        model
            .iter()
            .map(|(key, value)| (K::store(key), T::store(value)))
            .collect()
    }
    fn load(self) -> BTreeMap<N, M> {
        self.into_iter()
            .map(|(key, value)| (key.load(), value.load()))
            .collect()
    }
}

impl<K: Mirror<N> + Ord, N: Ord + Clone, T: Mirror<M>, M: Clone> Mirror<SharedMap<N, M>>
    for BTreeMap<K, T>
{
    fn store(model: &SharedMap<N, M>) -> Self {
        model
            .iter()
            .map(|(key, value)| (K::store(key), T::store(value)))
            .collect()
    }
    fn load(self) -> SharedMap<N, M> {
        self.into_iter()
            .map(|(key, value)| (key.load(), value.load()))
            .collect()
    }
}

impl<K: Mirror<N> + Ord, N: Ord + Clone, T: Mirror<Arc<M>>, M: Owned> Mirror<OwnedMap<N, M>>
    for BTreeMap<K, T>
{
    fn store(model: &OwnedMap<N, M>) -> Self {
        model
            .iter()
            .map(|(key, value)| (K::store(key), T::store(value)))
            .collect()
    }
    fn load(self) -> OwnedMap<N, M> {
        self.into_iter()
            .map(|(key, value)| (key.load(), value.load()))
            .collect()
    }
}

impl<K: Mirror<VmId> + Ord, T: Mirror<Arc<Vm>>> Mirror<Vms> for BTreeMap<K, T> {
    fn store(model: &Vms) -> Self {
        model
            .iter()
            .map(|(id, vm)| (K::store(id), T::store(vm)))
            .collect()
    }
    fn load(self) -> Vms {
        self.into_iter()
            .map(|(id, vm)| (id.load(), vm.load()))
            .collect()
    }
}

impl<T: Mirror<Arc<Event>>> Mirror<Events> for BTreeMap<u64, T> {
    fn store(model: &Events) -> Self {
        model
            .iter()
            .map(|(position, event)| (position, T::store(event)))
            .collect()
    }
    fn load(self) -> Events {
        self.into_iter()
            .map(|(position, event)| (position, event.load()))
            .collect()
    }
}

impl<A: Mirror<C>, B: Mirror<D>, C, D> Mirror<(C, D)> for (A, B) {
    fn store(model: &(C, D)) -> Self {
        (A::store(&model.0), B::store(&model.1))
    }
    fn load(self) -> (C, D) {
        (self.0.load(), self.1.load())
    }
}

impl<A: Mirror<C>, B: Mirror<D>, C, D> Mirror<Result<C, D>> for Result<A, B> {
    fn store(model: &Result<C, D>) -> Self {
        model.as_ref().map(A::store).map_err(B::store)
    }
    fn load(self) -> Result<C, D> {
        self.map(A::load).map_err(B::load)
    }
}

impl<T: Mirror<M>, M: Clone> Mirror<Arc<M>> for Box<T> {
    fn store(model: &Arc<M>) -> Self {
        Self::new(T::store(model))
    }
    fn load(self) -> Arc<M> {
        Arc::new((*self).load())
    }
}

/// Declares stored forms that have the very fields of their models, each in a stored form. A model that gains a field, or
/// a variant, no longer compiles against them: it needs a new form.
macro_rules! mirrors {
    () => {};
    (id $name:ident; $($rest:tt)*) => {
        impl Mirror<m::$name> for u128 {
            fn store(model: &m::$name) -> Self {
                model.0
            }
            fn load(self) -> m::$name {
                m::$name(self)
            }
        }
        mirrors!($($rest)*);
    };
    (struct $name:ident { $($field:ident: $ty:ty),* $(,)? } $($rest:tt)*) => {
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name {
            $(pub $field: $ty),*
        }
        impl Mirror<m::$name> for $name {
            fn store(model: &m::$name) -> Self {
                Self { $($field: Mirror::store(&model.$field)),* }
            }
            fn load(self) -> m::$name {
                m::$name { $($field: Mirror::load(self.$field)),* }
            }
        }
        mirrors!($($rest)*);
    };
    (enum $name:ident {
        $($variant:ident $({ $($field:ident: $ty:ty),* $(,)? })? $(( $item:ident: $item_ty:ty ))?),* $(,)?
    } $($rest:tt)*) => {
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name {
            $($variant $({ $($field: $ty),* })? $(( $item_ty ))?),*
        }
        impl Mirror<m::$name> for $name {
            fn store(model: &m::$name) -> Self {
                match model {
                    $(m::$name::$variant $({ $($field),* })? $(( $item ))? => {
                        Self::$variant $({ $($field: Mirror::store($field)),* })? $(( Mirror::store($item) ))?
                    })*
                }
            }
            fn load(self) -> m::$name {
                match self {
                    $(Self::$variant $({ $($field),* })? $(( $item ))? => {
                        m::$name::$variant $({ $($field: Mirror::load($field)),* })? $(( Mirror::load($item) ))?
                    })*
                }
            }
        }
        mirrors!($($rest)*);
    };
}
pub(crate) use mirrors;
